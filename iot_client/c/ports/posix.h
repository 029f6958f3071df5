/* The port for Linux and other POSIX systems: a TCP socket, and a file in place of flash. For tests, and to see how a
 * port is made. No TLS.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef MIDGE_POSIX_H
#define MIDGE_POSIX_H

#include "../midge.h"

typedef struct midge_posix {
    int socket, flash;
    long writes_left; /* the power is cut at the write that it reaches 0 before; below 0: never. For tests. */
} midge_posix;

bool midge_posix_open(midge_posix *p, const char *flash, uint32_t size, uint8_t entropy[16]);
bool midge_posix_link(midge_posix *p, const char *host, const char *port);
void midge_posix_close_link(midge_posix *p);
void midge_posix_sleep(unsigned milliseconds);
midge_port midge_posix_port(midge_posix *p);

#endif
