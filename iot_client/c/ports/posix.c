/* See posix.h. SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "posix.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECONDS 10 /* that a send may take */

static bool send_all(void *context, const uint8_t *data, size_t size)
{
    const midge_posix *p = (const midge_posix *)context;
    while (size > 0) {
        ssize_t sent = send(p->socket, data, size, MSG_NOSIGNAL);
        if (sent > 0) {
            data += sent;
            size -= (size_t)sent;
        } else if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
            struct pollfd wait = {p->socket, POLLOUT, 0};
            if (poll(&wait, 1, SECONDS * 1000) == 0)
                return false;
        } else
            return false;
    }
    return true;
}

static int receive_some(void *context, uint8_t *data, size_t size)
{
    const midge_posix *p = (const midge_posix *)context;
    if (size == 0)
        return 0;
    ssize_t got = recv(p->socket, data, size, MSG_DONTWAIT);
    if (got > 0)
        return (int)got;
    return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

static uint32_t now(void *context)
{
    struct timespec time;
    (void)context;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint32_t)((uint64_t)time.tv_sec * 1000u + (uint64_t)time.tv_nsec / 1000000u);
}

static bool flash_read(void *context, uint32_t at, void *data, size_t size)
{
    const midge_posix *p = (const midge_posix *)context;
    return pread(p->flash, data, size, (off_t)at) == (ssize_t)size;
}

static bool flash_write(void *context, uint32_t at, const void *data, size_t size)
{
    midge_posix *p = (midge_posix *)context;
    bool cut = p->writes_left == 0;
    if (p->writes_left > 0)
        p->writes_left--;
    if (cut)
        size = size / 2 + 1; /* half of it is written, and then the power is gone */
    bool done = pwrite(p->flash, data, size, (off_t)at) == (ssize_t)size;
    if (cut)
        _exit(9);
    return done;
}

/* As flash that was never written: all ones. */
static bool erase_new(int flash, uint32_t size)
{
    uint8_t piece[256];
    memset(piece, 0xff, sizeof piece);
    for (off_t at = lseek(flash, 0, SEEK_END); at >= 0 && at < (off_t)size;) {
        size_t some = (off_t)size - at < (off_t)sizeof piece ? (size_t)((off_t)size - at) : sizeof piece;
        if (pwrite(flash, piece, some, at) != (ssize_t)some)
            return false;
        at += (off_t)some;
    }
    return true;
}

bool midge_posix_open(midge_posix *p, const char *flash, uint32_t size, uint8_t entropy[16])
{
    p->socket = -1;
    p->writes_left = -1;
    p->flash = open(flash, O_RDWR | O_CREAT, 0600);
    int chance = open("/dev/urandom", O_RDONLY);
    bool done = p->flash >= 0 && chance >= 0 && read(chance, entropy, 16) == 16 && erase_new(p->flash, size);
    if (chance >= 0)
        close(chance);
    return done;
}

bool midge_posix_link(midge_posix *p, const char *host, const char *port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    int one = 1;
    midge_posix_close_link(p);
    if (getaddrinfo(host, port, &hints, &found) != 0)
        return false;
    for (const struct addrinfo *each = found; each != NULL && p->socket < 0; each = each->ai_next) {
        p->socket = socket(each->ai_family, each->ai_socktype, each->ai_protocol);
        if (p->socket >= 0 && connect(p->socket, each->ai_addr, each->ai_addrlen) != 0)
            midge_posix_close_link(p);
    }
    freeaddrinfo(found);
    if (p->socket >= 0)
        (void)setsockopt(p->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return p->socket >= 0;
}

void midge_posix_close_link(midge_posix *p)
{
    if (p->socket >= 0)
        close(p->socket);
    p->socket = -1;
}

void midge_posix_sleep(unsigned milliseconds)
{
    struct timespec time = {(time_t)(milliseconds / 1000u), (long)(milliseconds % 1000u) * 1000000L};
    nanosleep(&time, NULL);
}

midge_port midge_posix_port(midge_posix *p)
{
    midge_port port = {p, send_all, receive_some, now, flash_read, flash_write};
    return port;
}
