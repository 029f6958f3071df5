/* A device of a ledger's federation (tests/harness/ledger.py): each update adds a one at a place of its own, and what
 * receipts say is on the page, durably, before it is forgotten.
 *
 *   device HOST PORT FEDERATION NUMBER UPDATES FLASH PAGE [cut=N] [parameters=N] [packet=N] [pace=MS] [name=NAME]
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../iot_client/c/ports/posix.h"

typedef struct ledger {
    midge *m;
    const char *name;
    int page;
    uint64_t base;
} ledger;

static void write_line(const ledger *l, const char *line)
{
    if (write(l->page, line, strlen(line)) < 0 || fsync(l->page) != 0)
        exit(3);
}

static void hear(void *context, const midge_event *e)
{
    ledger *l = (ledger *)context;
    char line[400];
    unsigned long long outbox = midge_outbox(l->m), seq = (unsigned long long)e->number;
    switch (e->tiding) {
    case MIDGE_VERDICT:
        if (e->final) {
            (void)snprintf(line, sizeof line,
                           "{\"device\": \"%s\", \"outbox\": %llu, \"seq\": %llu, \"verdict\": \"%.*s\", \"place\": %llu}\n",
                           l->name, outbox, seq, (int)e->text.size, e->text.data, (unsigned long long)l->base + seq - 1);
            write_line(l, line);
        }
        break;
    case MIDGE_SETTLED:
        (void)snprintf(line, sizeof line, "{\"device\": \"%s\", \"outbox\": %llu, \"through\": %llu, \"first\": %llu}\n",
                       l->name, outbox, seq, (unsigned long long)l->base);
        write_line(l, line);
        break;
    default: break;
    }
    fprintf(stderr, "{\"event\": %d, \"number\": %llu, \"text\": \"%.*s\", \"why\": \"%.*s\"}\n", (int)e->tiding, seq,
            (int)e->text.size, e->text.size > 0 ? e->text.data : "", (int)e->why.size,
            e->why.size > 0 ? e->why.data : "");
}

int main(int count, char **words)
{
    if (count < 8)
        return 2;
    static uint64_t arena[1 << 17];
    uint64_t updates = strtoull(words[5], NULL, 10);
    char name[32];
    midge_posix board;
    ledger l = {NULL, name, open(words[7], O_WRONLY | O_CREAT | O_APPEND, 0600), strtoull(words[4], NULL, 10) * updates};
    midge_config config = {.federation = words[3], .device = name, .machine = "posix", .parameters = 4096,
                           .packet = 1280, .feedback = true, .event = hear, .context = &l};
    long cut = -1;
    unsigned pace = 0, waited = 0;
    for (int i = 8; i < count; i++) {
        if (sscanf(words[i], "cut=%ld", &cut) == 1 || sscanf(words[i], "parameters=%u", &config.parameters) == 1)
            continue;
        if (sscanf(words[i], "packet=%u", &config.packet) != 1 && sscanf(words[i], "pace=%u", &pace) != 1 &&
            strncmp(words[i], "name=", 5) != 0)
            return 2;
    }
    (void)snprintf(name, sizeof name, "device-%s", words[4]);
    for (int i = 8; i < count; i++)
        if (strncmp(words[i], "name=", 5) == 0)
            (void)snprintf(name, sizeof name, "%s", words[i] + 5);
    config.slot = ((uint32_t)MIDGE_SLOT(config.parameters, true) + 4095u) & ~4095u;
    if (l.page < 0 || !midge_posix_open(&board, words[6], 2 * config.slot, config.entropy))
        return 3;
    board.writes_left = cut;
    midge_port port = midge_posix_port(&board);
    l.m = midge_begin(arena, sizeof arena, &config, &port);
    if (l.m == NULL)
        return 4;
    for (;;) {
        midge_status status = midge_poll(l.m);
        midge_fit fit = {1, 1, 0, -1, -1};
        uint32_t size;
        switch (status) {
        case MIDGE_DOWN:
        case MIDGE_REFUSED:
            midge_posix_sleep(20);
            if (midge_posix_link(&board, words[1], words[2]))
                midge_connect(l.m);
            break;
        case MIDGE_TRAIN: {
            uint64_t place = l.base + midge_next(l.m) - 1;
            if (midge_next(l.m) > updates) {
                if (!midge_holding(l.m)) {
                    midge_leave(l.m, 0);
                    return 0;
                }
            } else if (waited < pace) { /* it trains, and polls meanwhile */
                midge_posix_sleep(2);
                waited += 2;
            } else {
                waited = 0;
                float *w = midge_weights(l.m, &size);
                if (place >= size) /* of a model that is none of a ledger */
                    place %= size;
                w[place] += 1;
                if (midge_submit(l.m, &fit) != MIDGE_DONE)
                    return 6;
            }
            break;
        }
        case MIDGE_IDLE:
            if (midge_next(l.m) > updates && !midge_holding(l.m)) {
                midge_leave(l.m, 0);
                return 0;
            }
            midge_posix_sleep(1);
            break;
        default: return 7;
        }
    }
}
