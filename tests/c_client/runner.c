/* Runs functions of midge.c on what comes in lines, for tests: a command, its words, and bytes as hexadecimal digits. The
 * answer is a line of JSON, or of digits. Includes the source, to reach what is static.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "../../iot_client/c/midge.c"

#include <stdio.h>
#include <stdlib.h>

#define PARAMETERS 70000
#define SLOT ((uint32_t)(MIDGE_SLOT(PARAMETERS, true) + 4095u) & ~4095u)

static uint64_t arena[MIDGE_ARENA(PARAMETERS, 4096, 4096) / 8 + 1];
static uint8_t flash[2 * SLOT], sent[1 << 20];
static size_t sent_size;
static char line[1 << 22];
static uint8_t input[1 << 21];
static midge *device;

static bool take_sent(void *context, const uint8_t *data, size_t size)
{
    (void)context;
    if (sent_size + size > sizeof sent)
        return false;
    memcpy(sent + sent_size, data, size);
    sent_size += size;
    return true;
}

static int nothing(void *context, uint8_t *data, size_t size)
{
    (void)context, (void)data, (void)size;
    return 0;
}

static uint32_t still(void *context)
{
    (void)context;
    return 0;
}

static bool from_flash(void *context, uint32_t at, void *data, size_t size)
{
    (void)context;
    if (at > sizeof flash || size > sizeof flash - at)
        return false;
    memcpy(data, flash + at, size);
    return true;
}

static bool to_flash(void *context, uint32_t at, const void *data, size_t size)
{
    (void)context;
    if (at > sizeof flash || size > sizeof flash - at)
        return false;
    memcpy(flash + at, data, size);
    return true;
}

static void begin(void)
{
    midge_config config = {.federation = "pumps", .device = "pump-17", .parameters = PARAMETERS, .frozen = 4096,
                           .packet = 4096, .slot = SLOT, .feedback = true};
    midge_port port = {NULL, take_sent, nothing, still, from_flash, to_flash};
    memset(flash, 0xff, sizeof flash);
    memset(arena, 0, sizeof arena);
    device = midge_begin(arena, sizeof arena, &config, &port);
    if (device == NULL)
        abort();
    sent_size = 0;
}

static bytes hex(const char *text)
{
    bytes found = {input, 0};
    for (; text != NULL && text[0] && text[1] && found.size < sizeof input; text += 2) {
        char pair[3] = {text[0], text[1], 0};
        input[found.size++] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return found;
}

static void show(const void *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        printf("%02x", ((const uint8_t *)data)[i]);
}

static void show_field(const char *word, const void *data, size_t size)
{
    printf(", \"%s\": \"", word);
    show(data, size);
    printf("\"");
}

static void show_text(const char *word, bytes text)
{
    printf(", \"%s\": \"%.*s\"", word, (int)text.size, text.size > 0 ? (const char *)text.data : "");
}

/* Every item read and written again: the same bytes, where they were the shortest. */
static void transcode(bytes payload)
{
    static uint8_t out[1 << 16];
    writer w = {out, sizeof out, 0, false};
    bytes header = payload;
    bool framed = payload.size >= 2 && get_le(payload.data, 2) + 2 <= payload.size;
    if (framed) {
        header = rest_of(payload, 2);
        header.size = (size_t)get_le(payload.data, 2);
    }
    reader r = reader_of(header);
    while (r.at < r.end && !r.bad) {
        item i;
        next_item(&r, &i);
        switch (i.kind) {
        case ITEM_BAD: break;
        case ITEM_NIL: write_byte(&w, 0xc0); break;
        case ITEM_BOOL: write_byte(&w, 0xc2u | (unsigned)i.number); break;
        case ITEM_INT: write_wide(&w, i.number); break;
        case ITEM_NEGATIVE: write_byte(&w, (unsigned)i.number & 0xffu); break; /* the vectors have none below -32 */
        case ITEM_FLOAT: write_real(&w, double_of(i.number)); break;
        case ITEM_TEXT:
        case ITEM_BIN: /* a device says none of more than 255 bytes */
            if (i.data.size > 255) {
                write_tagged(&w, i.kind == ITEM_TEXT ? 0xda : 0xc5, (uint32_t)i.data.size, 2);
                write_bytes(&w, i.data.data, i.data.size);
            } else if (i.kind == ITEM_TEXT)
                write_text(&w, i.data);
            else
                write_bin(&w, i.data.data, i.data.size);
            break;
        case ITEM_ARRAY: write_array(&w, (unsigned)i.number); break;
        case ITEM_MAP:
            if (i.number < 16)
                write_byte(&w, 0x80u | (unsigned)i.number);
            else
                write_tagged(&w, 0xde, (unsigned)i.number, 2);
            break;
        }
    }
    if (r.bad || w.full)
        printf("bad");
    else {
        if (framed)
            show(payload.data, 2);
        show(out, w.at);
        if (framed)
            show(payload.data + 2 + header.size, payload.size - 2 - header.size);
    }
}

static void show_announcement(bytes payload)
{
    announcement a;
    bool read = read_announcement(payload, &a);
    const goal *t = &a.target;
    printf("{\"read\": %s", read ? "true" : "false");
    if (read) {
        show_text("federation", a.federation);
        show_field("lineage", t->of.lineage, 16);
        show_field("schema_hash", t->of.schema_hash, 16);
        show_field("digest", t->of.digest, 16);
        printf(", \"generation\": %u, \"version\": %llu, \"chunk\": %u, \"issued\": %.17g, \"phase\": \"%s\"", t->of.generation,
               (unsigned long long)t->of.version, t->chunk, t->issued, a.phase == N_TRAINING ? "training" : "statistics");
        printf(", \"plan\": {\"revision\": %u, \"codec\": \"%s\", \"learning_rate\": %.9g, \"local_steps\": %u", t->plan.revision,
               t->plan.codec, (double)t->plan.learning_rate, t->plan.local_steps);
        printf(", \"epochs\": %u, \"batch_size\": %u, \"proximal\": %.9g, \"feedback\": %s}", t->plan.epochs,
               t->plan.batch_size, (double)t->plan.proximal, t->plan.feedback ? "true" : "false");
        printf(", \"moments\": [");
        for (unsigned i = 0; i < a.statistic_count && i < MIDGE_STATISTICS; i++)
            printf("%s{\"name\": \"%s\", \"channels\": %u}", i ? ", " : "", a.statistics[i].name, a.statistics[i].channels);
        printf("]");
    }
    printf("}");
}

static void show_offers(bytes frames)
{
    offers o = {frames, false, {0, 0, 0, 0}};
    printf("[");
    for (bool first = true; next_offer(&o); first = false)
        printf("%s[%llu, %u, %u, %u]", first ? "" : ", ", (unsigned long long)o.found.version, o.found.span, o.found.size,
               o.found.parts);
    printf("]");
}

static void show_receipt(bytes payload)
{
    word_to_us t;
    if (!read_header(&payload, &word_shape, &t)) {
        printf("{\"read\": false}");
        return;
    }
    printf("{\"read\": true, \"kind\": %u, \"outbox\": %llu, \"hi\": %llu, \"token\": %llu", t.kind,
           (unsigned long long)t.outbox, (unsigned long long)t.hi, (unsigned long long)t.token);
    show_text("why", t.why);
    printf(", \"settled\": [");
    verdict v;
    for (const char *comma = ""; next_map(&t.settled, &verdict_shape, &v); comma = ", ") {
        printf("%s{\"seq\": %llu, \"retry_after\": %.17g, \"repeat\": %s, \"final\": %s", comma,
               (unsigned long long)v.seq, v.retry_after, v.repeat ? "true" : "false", is_final(v.word) ? "true" : "false");
        show_text("verdict", v.text);
        show_text("why", v.why);
        printf("}");
    }
    printf("], \"grants\": %llu}", (unsigned long long)t.grants.count);
}

static void show_status(bytes payload)
{
    aggregator_status s;
    bool read = read_header(&payload, &status_shape, &s);
    printf("{\"read\": %s, \"boot\": %llu, \"token\": %llu", read ? "true" : "false", (unsigned long long)s.boot,
           (unsigned long long)s.token);
    show_text("state", s.state);
    show_text("why", s.why);
    printf("}");
}

static void show_hello(bytes payload)
{
    hello h;
    bool read = read_header(&payload, &hello_shape, &h);
    printf("{\"read\": %s, \"outbox\": %llu, \"number\": %llu, \"to\": %llu", read ? "true" : "false",
           (unsigned long long)h.outbox, (unsigned long long)h.number, (unsigned long long)h.to);
    printf(", \"state\": %u", h.state);
    printf("}");
}

static void show_part(bytes payload)
{
    part p;
    bool read = read_header(&payload, &part_shape, &p);
    printf("{\"read\": %s, \"version\": %llu, \"span\": %u, \"part\": %u, \"parts\": %u", read ? "true" : "false",
           (unsigned long long)p.of.version, p.of.span, p.part, p.of.parts);
    show_field("lineage", p.lineage, 16);
    show_field("sha256", p.sha256, 16);
    show_field("body", payload.data, read ? payload.size : 0);
    printf("}");
}

static void show_model(void)
{
    uint8_t digest[32];
    state_digest(device, digest);
    printf("{\"exponent\": %d", device->exponent);
    show_field("schema_hash", device->schema_hash, 16);
    show_field("digest", digest, 16);
    show_field("frozen", device->frozen, device->frozen_size);
    printf(", \"integers\": [");
    for (uint32_t i = 0; i < device->count; i++)
        printf("%s%d", i ? ", " : "", device->n[i]);
    printf("]}");
}

static void show_snapshot(bytes payload)
{
    frame_header f;
    begin();
    const char *why = !read_frame(payload, &f) || f.kind != N_SNAPSHOT ? "no snapshot" : take_snapshot(device, &f);
    if (why != NULL)
        printf("{\"why\": \"%s\"}", why);
    else
        show_model();
}

static void show_step(uint32_t count, bytes payload)
{
    frame_header f;
    begin();
    device->count = count;
    device->exponent = -24;
    const char *why = !read_frame(payload, &f) || f.kind != N_STEP ? "no step" : take_step(device, &f);
    if (why != NULL)
        printf("{\"why\": \"%s\"}", why);
    else
        show_model();
}

/* Coded integers: the SHA-256 of the values. */
static void show_coded(uint32_t count, bytes body)
{
    static int32_t values[1 << 18];
    midge_sha256 sha;
    uint8_t digest[32], four[4];
    memset(values, 0, sizeof values);
    if (count > sizeof values / sizeof values[0] || !add_coded(body, values, count)) {
        printf("bad");
        return;
    }
    midge_sha256_begin(&sha);
    for (uint32_t i = 0; i < count; i++) {
        put_le(four, (uint32_t)values[i], 4);
        midge_sha256_add(&sha, four, 4);
    }
    midge_sha256_end(&sha, digest);
    show(digest, 32);
}

/* Take a schema, of which only the tensors in the list are covered; all, if it is "-". */
static bool cover(bytes schema, const char *listed)
{
    begin();
    if (read_schema(device, schema) != NULL)
        return false;
    for (uint32_t i = 0; i < device->tensor_count && listed[0] != '-'; i++) {
        char wanted[16];
        (void)snprintf(wanted, sizeof wanted, ",%u,", i);
        if (strstr(listed, wanted) == NULL)
            device->tensors[i].role = ELSEWHERE;
    }
    return true;
}

static void show_flash(uint32_t at, uint32_t size)
{
    show(flash + slot_start(device, device->slot) + MIDGE_META + at, size);
}

/* An update of these values on a model of zeros: its body, and what is left. */
static void store_values(bytes values, const char *asked)
{
    midge_fit fit = {1, 1, 0, -1, -1};
    memset(device->target.plan.codec, 0, sizeof device->target.plan.codec);
    memcpy(device->target.plan.codec, asked, strlen(asked));
    device->work = WORK_TRAIN;
    for (uint32_t i = 0; i < device->count && 4 * i + 4 <= values.size; i++)
        device->w[i] = float_of((uint32_t)get_le(values.data + 4 * i, 4));
    midge_result result = midge_submit(device, &fit);
    printf("{\"result\": %d, \"codec\": \"%s\", \"body\": \"", (int)result, device->outbox.codec);
    show_flash(0, device->outbox.size);
    printf("\", \"left\": \"");
    show_flash(aligned16(device->outbox.size), 2 * device->outbox.left);
    printf("\"}");
}

/* A message as it is sent: the payload of the packet. */
static void say(const char *which, unsigned long long outbox, unsigned long long number)
{
    begin();
    device->link = LINK_UP;
    device->outbox.outbox = outbox;
    device->target.of.lineage[0] = 0;
    for (unsigned i = 0; i < 16; i++)
        device->target.of.lineage[i] = (uint8_t)i;
    device->number = number;
    if (strcmp(which, "joining") == 0)
        ask(device);
    else if (strcmp(which, "fetch") == 0) {
        const hop h = {12, 4, 100, 8};
        device->hops[0] = h;
        device->got = 6; /* 1 and 2 are here */
        send_fetch(device);
    } else
        say_hello(device, which, PASSING);
    size_t topic = 2u + sent[2] * 256u + sent[3]; /* packets of the vectors are below 128 bytes */
    show(sent + 2 + topic + 2, sent_size - 2 - topic - 2);
}

static void show_share(char *lineage, uint32_t generation, unsigned long long version, double share)
{
    goal t;
    begin();
    memset(&t, 0, sizeof t);
    memcpy(t.of.lineage, hex(lineage).data, 16);
    t.of.generation = generation;
    t.of.version = (uint32_t)version;
    t.share = (float)share;
    printf("%d", takes_part(device, &t) ? 1 : 0);
}

int main(void)
{
    begin();
    while (fgets(line, (int)sizeof line, stdin) != NULL) {
        char *word[8] = {NULL}, *state = line;
        unsigned count = 0;
        line[strcspn(line, "\n")] = 0;
        for (; count < 8 && state != NULL; count++) {
            word[count] = state;
            state = strchr(state, ' ');
            if (state != NULL)
                *state++ = 0;
        }
#define IS(name, least) (strcmp(word[0], name) == 0 && count >= (least))
        if (IS("transcode", 2)) transcode(hex(word[1]));
        else if (IS("announcement", 2)) show_announcement(hex(word[1]));
        else if (IS("receipt", 2)) show_receipt(hex(word[1]));
        else if (IS("status", 2)) show_status(hex(word[1]));
        else if (IS("hello", 2)) show_hello(hex(word[1]));
        else if (IS("part", 2)) show_part(hex(word[1]));
        else if (IS("snapshot", 2)) show_snapshot(hex(word[1]));
        else if (IS("step", 3)) show_step((uint32_t)atol(word[1]), hex(word[2]));
        else if (IS("coded", 3)) show_coded((uint32_t)atol(word[1]), hex(word[2]));
        else if (IS("offers", 2)) show_offers(hex(word[1]));
        else if (IS("announced", 2)) {
            announcement a;
            read_announcement(hex(word[1]), &a);
            show_offers(a.frames);
        }
        else if (IS("slot", 2)) printf("%u", midge_crc32(0, word[1], strlen(word[1])) % 64u);
        else if (IS("share", 5)) show_share(word[1], (uint32_t)atol(word[2]), strtoull(word[3], NULL, 10), atof(word[4]));
        else if (IS("schema", 3)) printf("%s", cover(hex(word[1]), word[2]) ? "ok" : "bad");
        else if (IS("feedback", 2)) {
            device->target.plan.feedback = word[1][0] == '1';
            printf("ok");
        }
        else if (IS("store", 3)) store_values(hex(word[2]), word[1]);
        else if (IS("say", 4)) say(word[1], strtoull(word[2], NULL, 10), strtoull(word[3], NULL, 10));
        else printf("unknown");
        printf("\n");
        fflush(stdout);
    }
    return 0;
}
