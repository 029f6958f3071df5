/* A fuzzer by mutation: takes the files that it is given as seeds, and feeds what it makes of them to all readers and to a
 * device that is joined and fetches. Runs under sanitizers; says how many inputs it tried. Where LLVM's libFuzzer is at
 * hand, compile with -DLIBFUZZER -fsanitize=fuzzer: then it is the target.
 *
 *   fuzz ROUNDS SEED FILE...
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "../../iot_client/c/midge.c"

#include <stdio.h>
#include <stdlib.h>

#define PARAMETERS 2000
#define SLOT ((uint32_t)(MIDGE_SLOT(PARAMETERS, true) + 4095u) & ~4095u)

static uint8_t flash[2 * SLOT];
static bytes stream; /* what the device receives */
static uint32_t clock_now;

static bool send_nothing(void *context, const uint8_t *data, size_t size)
{
    volatile uint8_t sum = 0;
    (void)context;
    for (size_t i = 0; i < size; i++)
        sum = (uint8_t)(sum + data[i]); /* a sanitizer sees what was never there */
    return true;
}

static int receive_stream(void *context, uint8_t *data, size_t size)
{
    (void)context;
    size_t some = stream.size < size ? stream.size : size;
    if (some > 0)
        memcpy(data, stream.data, some);
    stream = rest_of(stream, some);
    return (int)some;
}

static uint32_t tell_time(void *context)
{
    (void)context;
    return clock_now += 7;
}

static bool read_flash(void *context, uint32_t at, void *data, size_t size)
{
    (void)context;
    if (at > sizeof flash || size > sizeof flash - at)
        abort();
    memcpy(data, flash + at, size);
    return true;
}

static bool write_flash(void *context, uint32_t at, const void *data, size_t size)
{
    (void)context;
    if (at > sizeof flash || size > sizeof flash - at)
        abort();
    memcpy(flash + at, data, size);
    return true;
}

/* A device whose pieces of memory lie apart, each as large as it is in an arena: what goes beyond one is seen. */
static midge *start(void)
{
    static void *arena, *piece[6];
    midge_config config = {.federation = "pumps", .device = "pump-17", .parameters = PARAMETERS, .frozen = 64,
                           .packet = 1280, .slot = SLOT, .feedback = true};
    midge_port port = {NULL, send_nothing, receive_stream, tell_time, read_flash, write_flash};
    size_t size = MIDGE_ARENA(PARAMETERS, 64, 1280);
    const size_t sizes[6] = {MIDGE_SCRATCH, 4 * PARAMETERS, 4 * PARAMETERS + MIDGE_FRAME_EXTRA, 1280, MIDGE_TX, 64};
    if (arena == NULL)
        arena = malloc(size);
    midge *m = arena == NULL ? NULL : midge_begin(arena, size, &config, &port);
    for (unsigned i = 0; i < 6 && m != NULL; i++) {
        if (piece[i] == NULL)
            piece[i] = calloc(1, sizes[i]);
        if (piece[i] == NULL)
            abort();
    }
    if (m != NULL) {
        m->scratch = (uint32_t *)piece[0];
        m->n = (int32_t *)piece[1];
        m->w = (float *)piece[2];
        m->frame = (uint8_t *)piece[2];
        m->rx = (uint8_t *)piece[3];
        m->tx = (uint8_t *)piece[4];
        m->frozen = (uint8_t *)piece[5];
    }
    return m;
}

/* A device that is joined, holds an update, and fetches version 20. */
static midge *joined(void)
{
    static const hop way = {20, 4, 4 * PARAMETERS + MIDGE_FRAME_EXTRA, 12};
    midge *m = start();
    if (m == NULL)
        abort();
    m->link = LINK_UP;
    m->serves = m->ready = m->settled_once = true;
    m->count = 1000;
    m->have = true;
    m->work = WORK_FETCH;
    m->hops[0] = way;
    m->hop_count = 1;
    m->tensor_count = 0;
    m->outbox.seq = 7;
    m->outbox.next = 8;
    m->outbox.outbox = 1;
    for (unsigned i = 0; i < 16; i++)
        m->target.of.lineage[i] = m->held.lineage[i] = (uint8_t)i;
    return m;
}

static void read_all(midge *m, bytes data)
{
    static int32_t n[4096];
    announcement a;
    aggregator_status s;
    hello h;
    word_to_us t;
    part p;
    frame_header f;
    offers o = {data, false, {0, 0, 0, 0}};
    if (read_announcement(data, &a))
        (void)plan_way(m, a.frames, a.target.of.version);
    for (unsigned i = 0; i < 4; i++) {
        const shape *const shapes[4] = {&status_shape, &hello_shape, &word_shape, &part_shape};
        void *const into[4] = {&s, &h, &t, &p};
        bytes rest = data;
        (void)read_header(&rest, shapes[i], into[i]);
    }
    (void)plan_way(m, data, 20);
    while (next_offer(&o))
        continue;
    memset(n, 0, sizeof n);
    (void)add_coded(data, n, 4096);
    if (read_frame(data, &f)) {
        (void)take_step(m, &f);
        (void)take_snapshot(m, &f);
        (void)add_coded(f.body, n, 1541);
    }
    (void)read_schema(m, data);
}

static void deliver_all(bytes data)
{
    take_status(joined(), data);
    take_announcement(joined(), data);
    take_part(joined(), data);
    take_receipt(joined(), data);
    take_hello(joined(), data, true);
    midge *m = joined();
    m->work = WORK_NONE;
    m->outbox.seq = 0;
    take_announcement(m, data);
    for (unsigned i = 0; i < 4; i++)
        (void)midge_poll(m);
    m = joined(); /* as bytes from the broker */
    stream = data;
    for (unsigned i = 0; i < 6; i++)
        (void)midge_poll(m);
    midge_leave(m, 5);
}

static void one_input(const uint8_t *data, size_t size)
{
    bytes input = {data, size};
    stream.size = 0; /* what was left of the input before is gone */
    read_all(start(), input);
    deliver_all(input);
    memcpy(flash + SLOT, data, size < SLOT ? size : SLOT); /* as a record of the outbox */
    (void)start();
}

#ifdef LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    one_input(data, size);
    return 0;
}
#else

#define MOST 8192u
static uint8_t seeds[128][MOST];
static size_t sizes[128];
static uint64_t chance;

static uint32_t draw_number(uint32_t below)
{
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return (uint32_t)(chance >> 20) % below;
}

static size_t mutate(uint8_t *data, size_t size, unsigned count)
{
    static const uint8_t telling[] = {0x00, 0x01, 0x7f, 0x80, 0x8f, 0x9f, 0xa0, 0xbf, 0xc0, 0xc4, 0xc6, 0xca, 0xcb,
                                      0xcf, 0xd3, 0xd9, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xe0, 0xff};
    while (count-- > 0 && size > 0) {
        uint32_t at = draw_number((uint32_t)size), other, some;
        switch (draw_number(6)) {
        case 0: data[at] = (uint8_t)draw_number(256); break;
        case 1: data[at] ^= (uint8_t)(1u << draw_number(8)); break;
        case 2: data[at] = telling[draw_number((uint32_t)sizeof telling)]; break;
        case 3: size = at; break;
        case 4: /* some bytes once more */
            other = draw_number((uint32_t)size);
            some = draw_number(32);
            if (other + some <= size && at + some <= size)
                memmove(data + at, data + other, some);
            break;
        default: /* a part of another seed */
            other = draw_number(128);
            some = draw_number(64);
            if (some <= sizes[other] && at + some <= size)
                memcpy(data + at, seeds[other] + draw_number((uint32_t)(sizes[other] - some) + 1), some);
            break;
        }
    }
    return size;
}

int main(int count, char **words)
{
    static uint8_t data[2 * MOST];
    unsigned found = 0;
    if (count < 4)
        return 2;
    unsigned long rounds = strtoul(words[1], NULL, 10);
    chance = strtoul(words[2], NULL, 10) * 0x9e3779b97f4a7c15u + 1;
    for (int i = 3; i < count && found < 128; i++) {
        FILE *file = fopen(words[i], "rb");
        if (file == NULL)
            return 2;
        sizes[found] = fread(seeds[found], 1, MOST, file);
        found++;
        fclose(file);
    }
    for (unsigned long round = 0; round < rounds; round++) {
        uint32_t which = draw_number(found);
        size_t size = sizes[which];
        memcpy(data, seeds[which], size);
        size = mutate(data, size, 1 + draw_number(6));
        uint8_t *exact = malloc(size + 1); /* so that a sanitizer sees a byte beyond it */
        if (exact == NULL)
            return 2;
        memcpy(exact + 1, data, size);
        one_input(exact + 1, size);
        free(exact);
    }
    printf("%lu inputs of %u seeds\n", rounds, found);
    return 0;
}
#endif
