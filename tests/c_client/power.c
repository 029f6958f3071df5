/* Power cuts: every write of flash in the life of an outbox is cut, at its first byte, in its middle and at its last, and
 * then what is there must be the record before or the record after, whole. Prints one line: how many cuts, and of how
 * many updates each was looked at. With an argument it cuts nothing, and prints what flash and memory each update took.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "../../iot_client/c/midge.c"

#include <stdio.h>
#include <stdlib.h>

#ifndef PARAMETERS
#define PARAMETERS 600
#endif
#define SECTOR 4096u
#define SLOT (SECTOR * ((MIDGE_SLOT(PARAMETERS, true) + SECTOR) / SECTOR + 1))
#define UPDATES 6

static uint64_t arena[MIDGE_ARENA(PARAMETERS, 64, 1280) / 8 + 1];
static uint8_t flash[2 * SLOT];
static long writes_left; /* until the power is cut; below 0: never */
static unsigned keeps;   /* which part of the write that is cut arrives: 0 nothing, 1 half, 2 all but a byte, 3 noise */
static unsigned long writes, erases;

#include "silent_port.h"

/* As NOR flash: a write that begins at a sector's beginning erases it, and none goes over what is not erased. */
static bool write_flash(void *context, uint32_t at, const void *data, size_t size)
{
    (void)context;
    writes++;
    if (at % 16 != 0 || size % 16 != 0 || at + size > sizeof flash)
        abort();
    if (writes_left == 0)
        return false;
    size_t some = size;
    bool cut = writes_left == 1;
    if (writes_left > 0)
        writes_left--;
    if (cut)
        some = keeps == 0 ? 0 : keeps == 1 ? size / 2 : keeps == 2 ? size - 1 : size;
    for (size_t i = 0; i < some; i++) {
        if ((at + i) % SECTOR == 0) {
            memset(flash + at + i, 0xff, SECTOR);
            erases++;
        }
        if (flash[at + i] != 0xff)
            abort(); /* a byte is written twice without being erased */
        flash[at + i] = cut && keeps == 3 ? (uint8_t)(rand() & 0xff) : ((const uint8_t *)data)[i];
    }
    return !cut;
}

static midge *start(void)
{
    midge_config config = {.federation = "f", .device = "d", .parameters = PARAMETERS, .frozen = 64, .packet = 1280,
                           .slot = SLOT, .feedback = true};
    midge_port port = {NULL, send_nothing, receive_nothing, no_time, read_flash, write_flash};
    return midge_begin(arena, sizeof arena, &config, &port);
}

/* One update of a model of two tensors; its values follow from its number. */
static midge_result train(midge *m, unsigned number)
{
    midge_fit fit = {number, 1, 0, -1, -1};
    memset(m->tensors, 0, sizeof m->tensors);
    m->tensor_count = 2;
    m->tensors[0].size = PARAMETERS - 100;
    m->tensors[1].at = PARAMETERS - 100;
    m->tensors[1].size = 100;
    m->count = PARAMETERS;
    m->target.of.version = number;
    memset(m->n, 0, sizeof *m->n * PARAMETERS);
    memcpy(m->target.plan.codec, number % 2 == 1 ? "uq:4|rice" : "int8:256\0", 10); /* with what is left, and without */
    m->target.plan.feedback = true;
    m->work = WORK_TRAIN;
    for (uint32_t i = 0; i < PARAMETERS; i++)
        m->w[i] = (float)((i * 7919u + number * 104729u) % 1009u) / 1009.0f - 0.5f;
    return midge_submit(m, &fit);
}

/* What an outbox holds, as one number. */
static uint32_t shown(const midge *m)
{
    uint32_t at = slot_start(m, m->slot) + MIDGE_META, body = 0, left = 0; /* padding is not looked at */
    (void)copy_stored(m, at, m->outbox.size, at, &body);
    uint32_t behind = at + aligned16(m->outbox.size);
    (void)copy_stored(m, behind, 2 * m->outbox.left, behind, &left);
    return midge_crc32(0, &m->outbox, sizeof m->outbox) ^ body * 31u ^ left * 37u;
}

/* Of each update in int8:256: the bytes of its body, and the sectors that were erased for it. */
static int measure(midge *m)
{
    printf("{\"arena\": %lu, \"updates\": [", (unsigned long)MIDGE_ARENA(PARAMETERS, 64, 1280));
    for (unsigned number = 2; number <= 2 * UPDATES; number += 2) {
        erases = 0;
        if (train(m, number) != MIDGE_DONE)
            return 2;
        printf("%s[%lu, %lu]", number > 2 ? ", " : "", (unsigned long)m->outbox.size, erases);
    }
    printf("]}\n");
    return 0;
}

int main(int count, char **words)
{
    (void)words;
    static uint8_t before[2 * SLOT];
    unsigned long cuts = 0, kept = 0, went_on = 0;
    memset(flash, 0xff, sizeof flash);
    writes_left = -1;
    midge *m = start();
    if (m == NULL)
        return 1;
    if (count > 1)
        return measure(m);
    for (unsigned number = 1; number <= UPDATES; number++) {
        uint32_t old = shown(m);
        uint64_t identity = m->outbox.outbox;
        memcpy(before, flash, sizeof flash);
        writes = 0;
        if (train(m, number) != MIDGE_DONE || m->outbox.seq != number || m->outbox.next != number + 1)
            return 2;
        uint32_t after = shown(m);
        unsigned long most = writes;
        for (unsigned long at = 1; at <= most; at++)
            for (keeps = 0; keeps < 4; keeps++, cuts++) {
                memcpy(flash, before, sizeof flash);
                writes_left = -1;
                m = start();
                if (m == NULL || shown(m) != old)
                    return 3;
                writes_left = (long)at;
                midge_result result = train(m, number);
                writes_left = -1;
                m = start(); /* the power is back */
                if (m == NULL || m->outbox.outbox != identity)
                    return 4;
                bool is_old = shown(m) == old, is_new = shown(m) == after;
                if (!is_old && !is_new)
                    return 5;
                if (result == MIDGE_DONE)
                    return 6;
                kept += is_old ? 1 : 0;
                if (is_old && (train(m, number) != MIDGE_DONE || shown(m) != after))
                    return 7; /* trained again, it is the same update */
                m = start();
                if (m == NULL || shown(m) != after)
                    return 8;
                went_on++;
            }
    }
    printf("{\"cuts\": %lu, \"kept\": %lu, \"went_on\": %lu}\n", cuts, kept, went_on);
    return 0;
}
