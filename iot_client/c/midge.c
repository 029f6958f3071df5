/* Midge for microcontrollers: see midge.h.
 *
 * Sections: bytes · checksums · msgpack · names · the client's state · what is read · coded integers · the model ·
 * codecs · the outbox · training · statistics · MQTT · what is sent · fetching · the session · the interface.
 *
 * Compile with -ffp-contract=off: a fused multiply-add rounds once where two roundings are meant, and then the bytes of
 * an update depend on the processor. No function calls itself, and each length that came over the wire is checked
 * against the room that there is before it is used.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "midge.h"

#include <math.h>
#include <string.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

/* Updates are IEEE 754, statistics float64: a board whose double has 4 bytes cannot take part. */
typedef char midge_needs_float32[sizeof(float) == 4 ? 1 : -1];
typedef char midge_needs_float64[sizeof(double) == 8 ? 1 : -1];

#define SECTION 2048u     /* values that share a shift and two Rice parameters */
#define BLOCK (64u * SECTION)
#define WIDEST 30u        /* bits of a Rice parameter, at most */
#define GROUP 256u        /* numbers of a codec that share a Rice parameter */
#define SMALL 256u        /* values of a small tensor, at most */
#define SMALLEST 1e-37f   /* a step that is not above it stands for zeros: 1 / step would leave float32 */
#define WINDOW 4u         /* chunks of a frame that are asked for at a time; the protocol allows 8 */
#define NORMS 9u          /* deltas that the median for the clip covers */
#define MOST_SECONDS 1e6f /* that anything is put off: times are compared over half of 2^32 milliseconds */

#if defined(__GNUC__)
#define ONCE __attribute__((noinline)) /* where a copy at each call, or one in its only caller, measured larger */
#else
#define ONCE
#endif

typedef struct bytes {
    const uint8_t *data;
    size_t size;
} bytes;

/* ======================================================================================================== bytes */

static ONCE void put_le(uint8_t *at, uint64_t value, unsigned size)
{
    for (; size > 0; size--, value >>= 8)
        *at++ = (uint8_t)value;
}

static ONCE uint64_t get_le(const uint8_t *at, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = size; i-- > 0;)
        value = value << 8 | at[i];
    return value;
}

static uint64_t get_be(const uint8_t *at, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value = value << 8 | at[i];
    return value;
}

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static double double_of(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint64_t bits_of_double(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static bool finite_float(float value)
{
    return (bits_of(value) & 0x7f800000u) != 0x7f800000u;
}

static ONCE float finite_or(float value, float otherwise)
{
    return finite_float(value) ? value : otherwise;
}

static bool same_text(bytes text, const char *word)
{
    size_t size = strlen(word);
    return text.size == size && memcmp(text.data, word, size) == 0;
}

static bytes bytes_of(const char *word)
{
    bytes found = {(const uint8_t *)word, strlen(word)};
    return found;
}

static bytes rest_of(bytes whole, size_t from)
{
    bytes found = {whole.data, 0};
    if (from < whole.size) {
        found.data = whole.data + from;
        found.size = whole.size - from;
    }
    return found;
}

/* The next number of up to nine groups of seven bits, lowest first. */
static bool next_leb128(bytes *data, uint64_t *number)
{
    uint8_t byte = 0x80;
    *number = 0;
    for (unsigned shift = 0; byte & 0x80u; shift += 7) {
        if (data->size == 0 || shift > 56)
            return false;
        byte = *data->data;
        *data = rest_of(*data, 1);
        *number |= (uint64_t)(byte & 0x7fu) << shift;
    }
    return true;
}

static uint32_t least(uint32_t one, uint32_t other)
{
    return one < other ? one : other;
}

static uint32_t clamped(uint64_t number) /* of numbers that no board reaches */
{
    return number > UINT32_MAX ? UINT32_MAX : (uint32_t)number;
}

/* ==================================================================================================== checksums */

uint32_t midge_crc32(uint32_t crc, const void *data, size_t size)
{
    /* Four bits at a time: 64 bytes of table. */
    static const uint32_t table[16] = {
        0x00000000u, 0x1db71064u, 0x3b6e20c8u, 0x26d930acu, 0x76dc4190u, 0x6b6b51f4u, 0x4db26158u, 0x5005713cu,
        0xedb88320u, 0xf00f9344u, 0xd6d6a3e8u, 0xcb61b38cu, 0x9b64c2b0u, 0x86d3d2d4u, 0xa00ae278u, 0xbdbdf21cu};
    const uint8_t *at = (const uint8_t *)data;
    crc = ~crc;
    for (size_t i = 0; i < size; i++) {
        crc ^= at[i];
        crc = crc >> 4 ^ table[crc & 15u];
        crc = crc >> 4 ^ table[crc & 15u];
    }
    return ~crc;
}

static uint32_t rotate(uint32_t value, unsigned bits)
{
    return value >> bits | value << (32u - bits);
}

static void sha256_block(midge_sha256 *sha, const uint8_t *block)
{
    static const uint32_t k[64] = {
        0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u, 0xab1c5ed5u,
        0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu, 0x9bdc06a7u, 0xc19bf174u,
        0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu, 0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau,
        0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u, 0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u,
        0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu, 0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u,
        0xa2bfe8a1u, 0xa81a664bu, 0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u,
        0x19a4c116u, 0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
        0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u, 0xc67178f2u};
    uint32_t w[16], s[8];
    for (unsigned i = 0; i < 16; i++)
        w[i] = (uint32_t)get_be(block + 4 * i, 4);
    memcpy(s, sha->state, sizeof s);
    for (unsigned i = 0; i < 64; i++) {
        if (i >= 16) { /* the schedule in a ring of 16 */
            uint32_t a = w[(i + 1) & 15], b = w[(i + 14) & 15];
            w[i & 15] += w[(i + 9) & 15] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) +
                         (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
        }
        uint32_t t1 = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) +
                      ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i & 15];
        uint32_t t2 = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) +
                      ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof s[0]);
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (unsigned i = 0; i < 8; i++)
        sha->state[i] += s[i];
}

void midge_sha256_begin(midge_sha256 *sha)
{
    static const uint32_t start[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
                                      0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
    memcpy(sha->state, start, sizeof start);
    sha->length = 0;
}

void midge_sha256_add(midge_sha256 *sha, const void *data, size_t size)
{
    const uint8_t *at = (const uint8_t *)data;
    while (size > 0) {
        size_t filled = (size_t)(sha->length & 63u), part = 64u - filled;
        if (part > size)
            part = size;
        memcpy(sha->block + filled, at, part);
        sha->length += part;
        at += part;
        size -= part;
        if ((sha->length & 63u) == 0)
            sha256_block(sha, sha->block);
    }
}

void midge_sha256_end(midge_sha256 *sha, uint8_t digest[32])
{
    uint64_t bits = sha->length * 8u;
    uint8_t tail[72] = {0x80}, length = (uint8_t)(64u - ((sha->length + 8u) & 63u));
    for (unsigned i = 0; i < 8; i++)
        tail[length + i] = (uint8_t)(bits >> (56u - 8u * i));
    midge_sha256_add(sha, tail, (size_t)length + 8u);
    for (unsigned i = 0; i < 32; i++)
        digest[i] = (uint8_t)(sha->state[i / 4] >> (24u - 8u * (i & 3u)));
}

/* The first 16 bytes, of which the protocol makes names. */
static ONCE void end_digest(midge_sha256 *sha, uint8_t digest[16])
{
    uint8_t whole[32];
    midge_sha256_end(sha, whole);
    memcpy(digest, whole, 16);
}

static void digest_of(const void *data, size_t size, uint8_t digest[16])
{
    midge_sha256 sha;
    midge_sha256_begin(&sha);
    midge_sha256_add(&sha, data, size);
    end_digest(&sha, digest);
}

/* ====================================================================================================== msgpack */

typedef enum kind_of_item {
    ITEM_BAD, ITEM_NIL, ITEM_BOOL, ITEM_INT, ITEM_NEGATIVE, ITEM_FLOAT, ITEM_TEXT, ITEM_BIN, ITEM_ARRAY, ITEM_MAP
} kind_of_item;

typedef struct item {
    kind_of_item kind;
    uint64_t number; /* of a bool or an integer, in two's complement; a float64's bits; pairs or items that follow */
    size_t inside;   /* how many items are in it */
    bytes data;      /* of text and bin */
} item;

/* Reads items one after the other; `bad` once there was anything that is none. */
typedef struct reader {
    const uint8_t *at, *end;
    bool bad;
} reader;

static reader reader_of(bytes data)
{
    reader r = {data.data, data.data + data.size, false};
    return r;
}

/* `size` bytes, which may be none; with its sign it is two's complement. */
static ONCE uint64_t take_number(reader *r, unsigned size, bool with_sign)
{
    uint64_t value = 0;
    if ((size_t)(r->end - r->at) < size) {
        r->bad = true;
        return 0;
    }
    if (with_sign && *r->at >= 0x80)
        value = ~value;
    while (size-- > 0)
        value = value << 8 | *r->at++;
    return value;
}

/* What an item of each first byte from 0xc0 to 0xdf is, and of how many bytes its number or size. */
#define HEAD(kind, size) ((kind) << 4 | (size))
static const uint8_t heads[32] = {
    HEAD(ITEM_NIL, 0),      HEAD(ITEM_BAD, 0),      HEAD(ITEM_BOOL, 0),     HEAD(ITEM_BOOL, 0),
    HEAD(ITEM_BIN, 1),      HEAD(ITEM_BIN, 2),      HEAD(ITEM_BIN, 4),      HEAD(ITEM_BAD, 0),
    HEAD(ITEM_BAD, 0),      HEAD(ITEM_BAD, 0),      HEAD(ITEM_FLOAT, 4),    HEAD(ITEM_FLOAT, 8),
    HEAD(ITEM_INT, 1),      HEAD(ITEM_INT, 2),      HEAD(ITEM_INT, 4),      HEAD(ITEM_INT, 8),
    HEAD(ITEM_NEGATIVE, 1), HEAD(ITEM_NEGATIVE, 2), HEAD(ITEM_NEGATIVE, 4), HEAD(ITEM_NEGATIVE, 8), /* or 0 and above */
    HEAD(ITEM_BAD, 0),      HEAD(ITEM_BAD, 0),      HEAD(ITEM_BAD, 0),      HEAD(ITEM_BAD, 0),
    HEAD(ITEM_BAD, 0),      HEAD(ITEM_TEXT, 1),     HEAD(ITEM_TEXT, 2),     HEAD(ITEM_TEXT, 4),
    HEAD(ITEM_ARRAY, 2),    HEAD(ITEM_ARRAY, 4),    HEAD(ITEM_MAP, 2),      HEAD(ITEM_MAP, 4)};

/* The next item; of an array or a map its items follow as items of their own. */
static void next_item(reader *r, item *found)
{
    unsigned byte = (unsigned)take_number(r, 1, false);
    memset(found, 0, sizeof *found);
    if (r->bad)
        return;
    if (byte >= 0xc0 && byte < 0xe0) {
        unsigned head = heads[byte - 0xc0], size = head & 15u;
        found->kind = (kind_of_item)(head >> 4);
        found->number = size == 0 ? byte & 1u : take_number(r, size, found->kind == ITEM_NEGATIVE);
        if (found->kind == ITEM_NEGATIVE && found->number >> 63 == 0)
            found->kind = ITEM_INT;
        if (size == 4 && found->kind == ITEM_FLOAT)
            found->number = bits_of_double((double)float_of((uint32_t)found->number));
    } else if (byte >= 0x80 && byte < 0xc0) { /* those whose size is in the first byte */
        found->kind = byte < 0x90 ? ITEM_MAP : byte < 0xa0 ? ITEM_ARRAY : ITEM_TEXT;
        found->number = byte & (byte < 0xa0 ? 15u : 31u);
    } else {
        found->kind = byte < 0x80 ? ITEM_INT : ITEM_NEGATIVE;
        found->number = byte < 0x80 ? byte : ~(uint64_t)0xff | byte;
    }
    if (found->kind < ITEM_TEXT) {
        r->bad = r->bad || found->kind == ITEM_BAD;
        return;
    }
    size_t left = (size_t)(r->end - r->at), size = found->number < left ? (size_t)found->number : left;
    r->bad = r->bad || found->number > left; /* each item has a byte at least */
    found->data.data = r->at;
    found->data.size = size;
    if (found->kind <= ITEM_BIN)
        r->at += size;
    else
        found->inside = found->kind == ITEM_MAP ? 2 * size : size;
}

/* Pass over an item that was read, with all that is in it. */
static void pass_over(reader *r, const item *read)
{
    item inner;
    for (size_t left = read->inside; left > 0 && !r->bad; left += inner.inside) {
        next_item(r, &inner);
        left--;
    }
}

/* Writes into room of a fixed size; `full` once something did not fit. */
typedef struct writer {
    uint8_t *data;
    size_t room, at;
    bool full;
} writer;

static void write_bytes(writer *w, const void *data, size_t size)
{
    if (size > w->room - w->at) {
        w->full = true;
        return;
    }
    if (size > 0)
        memcpy(w->data + w->at, data, size);
    w->at += size;
}

static ONCE void write_byte(writer *w, unsigned byte)
{
    uint8_t one = (uint8_t)byte;
    write_bytes(w, &one, 1);
}

/* Big-endian, in 1 to 4 bytes. */
static ONCE void write_be(writer *w, uint32_t value, unsigned size)
{
    while (size-- > 0)
        write_byte(w, value >> (8u * size) & 0xffu);
}

static ONCE void write_tagged(writer *w, unsigned tag, uint32_t value, unsigned size)
{
    write_byte(w, tag);
    write_be(w, value, size);
}

static void write_long(writer *w, unsigned tag, uint64_t value)
{
    write_tagged(w, tag, (uint32_t)(value >> 32), 4);
    write_be(w, (uint32_t)value, 4);
}

static ONCE void write_integer(writer *w, uint32_t value)
{
    if (value < 0x80u)
        write_byte(w, value);
    else if (value <= 0xffu)
        write_tagged(w, 0xcc, value, 1);
    else if (value <= 0xffffu)
        write_tagged(w, 0xcd, value, 2);
    else
        write_tagged(w, 0xce, value, 4);
}

static void write_wide(writer *w, uint64_t value)
{
    if (value <= UINT32_MAX)
        write_integer(w, (uint32_t)value);
    else
        write_long(w, 0xcf, value);
}

static void write_array(writer *w, unsigned items)
{
    if (items < 16)
        write_byte(w, 0x90u | items);
    else
        write_tagged(w, 0xdc, items, 2);
}

/* Of at most 255 bytes, as all text and data that a device says. */
static void write_text(writer *w, bytes text)
{
    if (text.size < 32)
        write_byte(w, 0xa0u | (unsigned)text.size);
    else
        write_tagged(w, 0xd9, (uint32_t)text.size, 1);
    write_bytes(w, text.data, text.size);
}

static void write_word(writer *w, const char *word)
{
    write_text(w, bytes_of(word));
}

static void write_bin(writer *w, const void *data, size_t size)
{
    write_tagged(w, 0xc4, (uint32_t)size, 1);
    write_bytes(w, data, size);
}

static void write_real(writer *w, double value)
{
    write_long(w, 0xcb, bits_of_double(value));
}

/* ======================================================================================================== names */

/* Numbers of the wire's names that this client knows. */
enum {
    N_KIND = 0, N_UPDATE = 1, N_OFFER = 2, N_CHUNK = 3, N_FETCH = 4, N_STATISTICS = 5, N_REPORT = 6, N_HELLO = 7,
    N_RECEIPT = 8, N_AGGREGATOR = 9, N_ANNOUNCEMENT = 10, N_PART = 11, N_OUTBOX = 13, N_FIRST = 14, N_SEQ = 15,
    N_LINEAGE = 16, N_GENERATION = 17, N_BASE = 18, N_CODEC = 21, N_SIZE = 22, N_SHA256 = 23, N_EXAMPLES = 24,
    N_STEPS = 25, N_SECONDS = 26, N_PLAN = 27, N_METRICS = 28, N_PARTS = 29, N_VERSION = 31, N_SPAN = 32,
    N_CHANNEL = 33, N_NAMES = 34, N_STATE = 36, N_NEXT = 37, N_WAKES = 38, N_CAPABILITIES = 39, N_VERDICT = 40,
    N_WHY = 41, N_RETRY_AFTER = 42, N_REPEAT = 43, N_HI = 46, N_SETTLED = 47, N_GRANTS = 48, N_BOOT = 49, N_STEP = 50,
    N_REVISION = 51, N_LEARNING_RATE = 52, N_LOCAL_STEPS = 53, N_EPOCHS = 54, N_BATCH_SIZE = 55, N_PROXIMAL = 56,
    N_FEEDBACK = 57, N_FEWEST_STEPS = 59, N_MOST_STEPS = 60, N_NAME = 63, N_CHANNELS = 64, N_SHARE = 65,
    N_INTERVAL = 66, N_FEDERATION = 69, N_PHASE = 70, N_DIGEST = 71, N_FRAMES = 72, N_MOMENTS = 73,
    N_PARTICIPATION = 74, N_ISSUED = 75, N_BYTE_RATE = 80, N_DEVICES = 81, N_BODY = 82, N_NUMBER = 85, N_LOSS = 88,
    N_ACCURACY = 89, N_MACHINE = 91, N_TOKEN = 97, N_TO = 99, N_BASE_DIGEST = 100, N_WAITS = 106, N_REST = 111,
    N_TROUBLE = 112, N_LARGEST = 113, N_CLASS = 115, N_MICRO_CODEC = 116,
    N_SCHEMA_HASH = 19,
    /* These travel as text: */
    N_SNAPSHOT = 200, N_EXPONENT, N_SCHEMA, N_FILLING, N_TRAINED, N_AVERAGED, N_FROZEN, N_FLOAT32, N_COMPLEX64, N_BOOL,
    N_TRAIN, N_TRAINING, N_READY, N_JOINING, N_LOST, N_BUSY, N_PAUSED, N_QUARANTINED, N_BAD_SIGNATURE, N_ACCEPTED,
    N_FORGOTTEN, N_MICRO,
    N_UNKNOWN = 255
};

/* The names in the order of their numbers, each after its distance from the one before, plus 128. */
static const uint8_t names[] =
    "\200kind" "\203chunk" "\202statistics" "\202hello" "\201receipt" "\202announcement" "\201part" "\202outbox"
    "\202seq" "\201lineage" "\201generation" "\202schema_hash" "\202codec" "\201size" "\201sha256" "\203seconds"
    "\201plan" "\202parts" "\202version" "\201span" "\201channel" "\203state" "\204verdict" "\201why"
    "\201retry_after" "\201repeat" "\203hi" "\201settled" "\201grants" "\201boot" "\201step" "\201revision"
    "\201learning_rate" "\201local_steps" "\201epochs" "\201batch_size" "\201proximal" "\201feedback"
    "\202fewest_steps" "\201most_steps" "\203name" "\201channels" "\201share" "\201interval" "\203federation"
    "\201phase" "\201digest" "\201frames" "\201moments" "\201participation" "\201issued" "\205byte_rate" "\201devices"
    "\201body" "\203number" "\214token" "\202to" "\214rest" "\201trouble" "\203class" "\201micro_codec" "\324snapshot"
    "\201exponent" "\201schema" "\201filling" "\201trained" "\201averaged" "\201frozen" "\201float32" "\201complex64"
    "\201bool" "\201train" "\201training" "\201ready" "\201joining" "\201lost" "\201busy" "\201paused"
    "\201quarantined" "\201bad_signature" "\201accepted" "\201forgotten" "\201micro";

/* What a key or a word says, as a number or as text. */
static unsigned name_of(const item *said)
{
    const uint8_t *at = names, *word;
    unsigned number = 0;
    if (said->kind == ITEM_INT && said->number < N_SNAPSHOT)
        return (unsigned)said->number;
    while (said->kind == ITEM_TEXT && *at != 0) {
        number += *at++ & 0x7fu;
        for (word = at; *at > 0 && *at < 0x80;)
            at++;
        if (said->data.size == (size_t)(at - word) && memcmp(said->data.data, word, said->data.size) == 0)
            return number;
    }
    return N_UNKNOWN;
}

/* A list in a header, to be read where it lies. */
typedef struct list {
    reader items;
    uint32_t count; /* of items, or of pairs */
} list;

/* How a field of a header is taken into a structure, and where. One of the wrong type counts as not there. A whole
 * number that no board reaches is clamped to 32 bits; a real one that is not above 0 is taken as 0. */
enum form {
    FORM_ID, FORM_U64, FORM_CLAMPED, FORM_SIGNED, FORM_POSITIVE, FORM_REAL, FORM_TRUE, FORM_TEXT, FORM_BIN, FORM_LIST,
    FORM_NAME
};

/* A value in all forms that it may be taken in; the first is 16 bytes of data. */
typedef struct readings {
    bytes data;
    list inner;
    uint64_t whole;
    double real;
    float positive;
    uint32_t clamped, low, name;
    bool truth;
} readings;

#define KIND(kind) (1u << (kind))
static const struct {
    uint8_t from, size;
    uint16_t kinds; /* from which items */
} forms[] = {{0, 16, KIND(ITEM_BIN)},
             {offsetof(readings, whole), 8, KIND(ITEM_INT)},
             {offsetof(readings, clamped), 4, KIND(ITEM_INT)},
             {offsetof(readings, low), 4, KIND(ITEM_INT) | KIND(ITEM_NEGATIVE)},
             {offsetof(readings, positive), 4, KIND(ITEM_INT) | KIND(ITEM_FLOAT)},
             {offsetof(readings, real), 8, KIND(ITEM_INT) | KIND(ITEM_FLOAT)},
             {offsetof(readings, truth), 1, KIND(ITEM_BOOL)},
             {offsetof(readings, data), sizeof(bytes), KIND(ITEM_TEXT)},
             {offsetof(readings, data), sizeof(bytes), KIND(ITEM_BIN)},
             {offsetof(readings, inner), sizeof(list), KIND(ITEM_ARRAY) | KIND(ITEM_MAP)},
             {offsetof(readings, name), 4, KIND(ITEM_INT) | KIND(ITEM_TEXT)}};

typedef struct field {
    uint8_t key, form;
    uint16_t at;
} field;

/* What is read of a header or of another map; the first `needed` fields must be there. */
typedef struct shape {
    const field *fields;
    uint8_t count, needed;
    uint8_t size; /* of the structure, which is cleared first; 0: it is not */
    bool cut;     /* it may be cut short */
} shape;

#define COUNT(table) ((unsigned)(sizeof(table) / sizeof(table)[0]))
#define SHAPE(fields, needed, size) {fields, COUNT(fields), needed, size, false}

static bool take_field(const reader *r, const item *value, unsigned form, void *to)
{
    bool whole = value->kind == ITEM_INT;
    readings v = {value->data, {*r, (uint32_t)value->number}, value->number, 0, 0, clamped(value->number),
               (uint32_t)value->number, name_of(value), value->number != 0};
    v.real = whole ? (double)value->number : double_of(value->number);
    v.positive = (float)v.real;
    v.positive = v.positive > 1e30f ? 1e30f : v.positive > 0 ? v.positive : 0;
    if ((forms[form].kinds & KIND(value->kind)) == 0 || (form == FORM_ID && value->data.size < 16))
        return false;
    const uint8_t *from = form == FORM_ID ? value->data.data : (const uint8_t *)&v + forms[form].from;
    memcpy(to, from, forms[form].size);
    return true;
}

/* Take a map of so many pairs into a structure: whether all that is needed was there. Others are passed over. */
static bool take_map(reader *r, uint32_t pairs, const shape *s, void *to)
{
    unsigned seen = 0;
    memset(to, 0, s->size);
    for (item key, value; pairs > 0 && !r->bad; pairs--) {
        next_item(r, &key);
        pass_over(r, &key);
        next_item(r, &value);
        unsigned name = name_of(&key);
        for (unsigned i = 0; i < s->count && !r->bad; i++)
            if (s->fields[i].key == name && take_field(r, &value, s->fields[i].form, (uint8_t *)to + s->fields[i].at))
                seen |= 1u << i;
        pass_over(r, &value);
    }
    return (~seen & ((1u << s->needed) - 1u)) == 0;
}

/* The next map of a list; false at the end, or where there is none. */
static bool next_map(list *maps, const shape *s, void *to)
{
    item map;
    if (maps->count == 0)
        return false;
    maps->count--;
    next_item(&maps->items, &map);
    return map.kind == ITEM_MAP && take_map(&maps->items, (uint32_t)map.number, s, to) && !maps->items.bad;
}

/* Take a payload's header into a structure; what remains of the payload is its body. */
static bool read_header(bytes *payload, const shape *s, void *to)
{
    if (payload->size < 2)
        return false;
    size_t length = (size_t)get_le(payload->data, 2);
    bytes header = rest_of(*payload, 2);
    *payload = rest_of(header, length);
    if (length <= header.size)
        header.size = length;
    else if (!s->cut)
        return false;
    reader r = reader_of(header);
    item map;
    next_item(&r, &map);
    if (s->cut)
        r.bad = false; /* it may claim more pairs than have come */
    return map.kind == ITEM_MAP && take_map(&r, (uint32_t)map.number, s, to) && (s->cut || !r.bad);
}

/* ========================================================================================== the client's state */

/* A tensor of the model, as the schema has it. */
typedef struct tensor {
    uint32_t name;           /* CRC-32 of its name */
    uint32_t at, size;       /* in the shared vector; of a frozen one, byte and bytes in the frozen tensors */
    uint32_t rows, sides;    /* its first side, and how many it has */
    float step;              /* while encoding: what its integers are multiplied by */
    enum role { TRAINED, AVERAGED, FROZEN, ELSEWHERE } role;
    bool is_float32;
} tensor;

/* One frame on the way to a version: a step over `span` versions, or a snapshot if `span` is 0. */
typedef struct hop { /* without gaps */
    uint32_t version, span, size, parts;
} hop;

#define NOWHERE UINT32_MAX /* the version of a device that holds none */

typedef struct statistic {
    char name[24];
    uint32_t channels;
} statistic;

/* A version of a model: without gaps, to be compared and stored as it is. */
typedef struct origin {
    uint8_t lineage[16], schema_hash[16];
    uint32_t generation, version;
    uint8_t digest[16];
} origin;

/* What is trained from, or will be. */
typedef struct goal {
    origin of;
    double issued;
    uint32_t chunk, devices;
    float share, interval, byte_rate;
    bool statistics; /* the phase: nothing to train from yet */
    midge_plan plan;
} goal;

/* The outbox as it lies in flash: META bytes, then the body, then what is left to say. */
typedef struct record {
    uint32_t magic, crc, counter; /* the checksum is of all that follows it in these META bytes */
    uint32_t body_crc, left_crc;
    uint32_t size, left;          /* bytes of the body; values of what is left */
    uint32_t loses;               /* whether it leaves out what is lost */
    uint64_t outbox;
    uint32_t next, seq;           /* seq 0: no update is held */
    origin of;
    uint8_t sha256[16];
    char codec[24];
    uint32_t examples, steps, revision, norm_count;
    float seconds, metrics[2]; /* loss and accuracy, or below 0 */
    float norms[NORMS];
} record;

typedef char midge_record_fits[sizeof(record) == MIDGE_META ? 1 : -1];

typedef enum link_state { LINK_DOWN, LINK_GREETED, LINK_JOINING, LINK_UP } link_state;
typedef enum work_state { WORK_NONE, WORK_TURN, WORK_FETCH, WORK_TRAIN, WORK_MEASURE } work_state;

struct midge { /* what is used most comes first: within 128 bytes an instruction of Thumb has two bytes, not four */
    link_state link;
    midge_status end; /* what ends this device, or MIDGE_IDLE */
    work_state work;
    bool have;        /* n is a model */
    bool serves, ready, settled_once, greets;
    enum { NOTHING, LEVELS, EVERYTHING } says; /* of trained values: what the update does that is encoded */
    bool newer;       /* an announcement was passed over, and is to be asked for at `newer_at` */
    bool after;       /* but only once the update that is held is settled */
    bool suspected, answered, sound, has_trained;
    uint8_t slot, short_lives; /* connections that ended soon after they had begun, one after the other */
    uint8_t hop_count, hop_at, tries, statistic_count;
    uint16_t packet_id;
    /* Milliseconds; times wrap around and are compared by `is_due`. */
    uint32_t clock, send_at, send_wait, newer_at, work_at, moments_at, heard, greeted_at, greet_at;
    uint32_t part, got; /* the first part that is missing, and which of the WINDOW from there are here */
    uint32_t count, tensor_count, received;
    /* Memory. */
    int32_t *n;         /* the model's integers: `count` values times two to the power of `exponent` */
    float *w;           /* the weights while training; the frame while fetching */
    uint8_t *rx, *tx;
    size_t skipping;
    uint32_t *scratch;  /* MIDGE_SCRATCH bytes */
    const midge_moment *moments;
    int32_t exponent;
    unsigned pairs;     /* of the header that is written */
    size_t header;      /* where it begins */
    uint64_t number, token, boot;
    uint8_t *frame, *frozen; /* the first is where the weights are */
    uint32_t frame_room, frozen_size, draws;
    uint32_t last_now, said, joining_until, greet_wait, sent_at, trained_at, moments_wait; /* milliseconds as well */
    writer out;         /* the packet under way, and what it says beside the rest */
    struct { const char *state, *waits; uint64_t number, to; double wakes; uint32_t first, next, largest, parts; } say;
    origin held;        /* what n is, which may be on its way; `sound`: its digest was right */
    const char *waits;
    midge_port port;
    midge_event event; /* the next one */
    uint8_t schema_hash[16], frame_sha[16];
    goal target;
    record outbox;
    midge_config config;
    hop hops[MIDGE_HOPS];
    statistic statistics[MIDGE_STATISTICS];
    tensor tensors[MIDGE_TENSORS];
};

typedef char midge_self_fits[sizeof(struct midge) <= MIDGE_SELF ? 1 : -1];

static ONCE bool flash_read(const midge *m, uint32_t at, void *data, size_t size)
{
    return m->port.flash_read(m->port.context, at, data, size);
}

static ONCE bool flash_write(const midge *m, uint32_t at, const void *data, size_t size)
{
    return m->port.flash_write(m->port.context, at, data, size);
}

static uint32_t aligned16(uint32_t size)
{
    return (size + 15u) & ~15u;
}

/* An event; what else it says is in `event` already. */
static ONCE void tell(midge *m, midge_tiding tiding, uint64_t number)
{
    m->event.tiding = tiding;
    m->event.number = number;
    if (m->config.event != NULL)
        m->config.event(m->config.context, &m->event);
    memset(&m->event, 0, sizeof m->event);
}

static midge_text text_of(bytes text)
{
    midge_text found = {(const char *)text.data, text.size};
    return found;
}

static ONCE void tell_why(midge *m, midge_tiding tiding, uint32_t number, const char *why)
{
    m->event.why = text_of(bytes_of(why));
    tell(m, tiding, number);
}

static bool is_due(const midge *m, uint32_t at)
{
    return (int32_t)(m->clock - at) >= 0;
}

static uint64_t draw(midge *m)
{
    uint8_t digest[16], counted[24];
    memcpy(counted, m->config.entropy, 16);
    put_le(counted + 16, ++m->draws, 8);
    digest_of(counted, sizeof counted, digest);
    return get_le(digest, 8);
}

/* ================================================================================================ what is read */

/* An announcement, as far as it concerns a device. Lists are read where they lie. */
typedef struct announcement {
    unsigned kind, phase, channel, devices; /* the last: of which class they are */
    goal target;
    bytes federation, frames, codec, micro_codec;
    list plan, participation, moments;
    float rest;
    unsigned statistic_count; /* more than MIDGE_STATISTICS: it asks for more than fit */
    statistic statistics[MIDGE_STATISTICS];
} announcement;

static const field announcement_fields[] = {
    {N_KIND, FORM_NAME, offsetof(announcement, kind)},
    {N_LINEAGE, FORM_ID, offsetof(announcement, target.of.lineage)},
    {N_GENERATION, FORM_CLAMPED, offsetof(announcement, target.of.generation)},
    {N_VERSION, FORM_CLAMPED, offsetof(announcement, target.of.version)},
    {N_SCHEMA_HASH, FORM_ID, offsetof(announcement, target.of.schema_hash)},
    {N_DIGEST, FORM_ID, offsetof(announcement, target.of.digest)},
    {N_PHASE, FORM_NAME, offsetof(announcement, phase)},
    {N_FEDERATION, FORM_TEXT, offsetof(announcement, federation)},
    {N_CHANNEL, FORM_NAME, offsetof(announcement, channel)},
    {N_FRAMES, FORM_BIN, offsetof(announcement, frames)},
    {N_CHUNK, FORM_CLAMPED, offsetof(announcement, target.chunk)},
    {N_DEVICES, FORM_CLAMPED, offsetof(announcement, target.devices)},
    {N_ISSUED, FORM_REAL, offsetof(announcement, target.issued)},
    {N_BYTE_RATE, FORM_POSITIVE, offsetof(announcement, target.byte_rate)},
    {N_PLAN, FORM_LIST, offsetof(announcement, plan)},
    {N_PARTICIPATION, FORM_LIST, offsetof(announcement, participation)},
    {N_MOMENTS, FORM_LIST, offsetof(announcement, moments)}};
static const shape announcement_shape = SHAPE(announcement_fields, 7, 0);

/* Its plan, and who takes part: two maps, without a name in common. */
static const field plan_fields[] = {{N_REVISION, FORM_CLAMPED, offsetof(announcement, target.plan.revision)},
                                    {N_LEARNING_RATE, FORM_POSITIVE, offsetof(announcement, target.plan.learning_rate)},
                                    {N_LOCAL_STEPS, FORM_CLAMPED, offsetof(announcement, target.plan.local_steps)},
                                    {N_EPOCHS, FORM_CLAMPED, offsetof(announcement, target.plan.epochs)},
                                    {N_BATCH_SIZE, FORM_CLAMPED, offsetof(announcement, target.plan.batch_size)},
                                    {N_PROXIMAL, FORM_POSITIVE, offsetof(announcement, target.plan.proximal)},
                                    {N_SECONDS, FORM_POSITIVE, offsetof(announcement, target.plan.seconds)},
                                    {N_FEWEST_STEPS, FORM_CLAMPED, offsetof(announcement, target.plan.fewest_steps)},
                                    {N_MOST_STEPS, FORM_CLAMPED, offsetof(announcement, target.plan.most_steps)},
                                    {N_FEEDBACK, FORM_TRUE, offsetof(announcement, target.plan.feedback)},
                                    {N_CODEC, FORM_TEXT, offsetof(announcement, codec)},
                                    {N_MICRO_CODEC, FORM_TEXT, offsetof(announcement, micro_codec)},
                                    {N_CLASS, FORM_NAME, offsetof(announcement, devices)},
                                    {N_SHARE, FORM_POSITIVE, offsetof(announcement, target.share)},
                                    {N_INTERVAL, FORM_POSITIVE, offsetof(announcement, target.interval)},
                                    {N_REST, FORM_POSITIVE, offsetof(announcement, rest)}};
static const shape plan_shape = SHAPE(plan_fields, 0, 0);

/* A statistic that is asked for. */
typedef struct question {
    bytes name;
    uint32_t channels;
} question;

static const field question_fields[] = {{N_NAME, FORM_TEXT, offsetof(question, name)},
                              {N_CHANNELS, FORM_CLAMPED, offsetof(question, channels)}};
static const shape question_shape = SHAPE(question_fields, 0, sizeof(question));

/* A name that is longer than any known here is kept as none. */
static void copy_name(char to[24], bytes name)
{
    memset(to, 0, 24);
    if (name.size < 24 && name.size > 0)
        memcpy(to, name.data, name.size);
}

static void read_statistics(list *maps, announcement *a)
{
    question said;
    while (maps->count > 0) {
        bool known = next_map(maps, &question_shape, &said) && said.name.size - 1u < sizeof a->statistics->name - 1u;
        if (!known || a->statistic_count >= MIDGE_STATISTICS) {
            a->statistic_count = MIDGE_STATISTICS + 1;
            return;
        }
        statistic *to = &a->statistics[a->statistic_count++];
        copy_name(to->name, said.name);
        to->channels = said.channels;
    }
}

/* Read an announcement in its envelope, which has no kind. */
static bool read_announcement(bytes payload, announcement *a)
{
    static const field fields[] = {{N_BODY, FORM_BIN, 0}};
    static const shape envelope = SHAPE(fields, 1, sizeof(bytes));
    bytes inner;
    memset(a, 0, sizeof *a);
    midge_plan *plan = &a->target.plan;
    a->channel = N_TRAIN; /* the defaults of the protocol */
    a->target.chunk = 256u * 1024u;
    a->target.share = 1;
    a->codec = bytes_of("uq:4|rice");
    a->micro_codec = bytes_of("int8:256");
    plan->feedback = true;
    plan->fewest_steps = 1;
    plan->most_steps = 10000;
    if (!read_header(&payload, &envelope, &inner) || !read_header(&inner, &announcement_shape, a))
        return false;
    (void)take_map(&a->plan.items, a->plan.count, &plan_shape, a);
    copy_name(plan->codec, a->codec);
    copy_name(plan->micro_codec, a->micro_codec);
    plan->micro = a->devices == N_MICRO;
    (void)take_map(&a->participation.items, a->participation.count, &plan_shape, a);
    read_statistics(&a->moments, a);
    a->target.statistics = a->phase == N_STATISTICS;
    if (a->rest > a->target.interval)
        a->target.interval = a->rest;
    return a->kind == N_ANNOUNCEMENT && a->target.chunk > 0 && a->channel == N_TRAIN;
}

/* The aggregator's status. It may be cut short: what concerns a device comes before what is for people. */
typedef struct aggregator_status {
    bytes state, why;
    uint64_t boot, token;
    unsigned word;
} aggregator_status;

static const field status_fields[] = {{N_STATE, FORM_NAME, offsetof(aggregator_status, word)},
                                      {N_BOOT, FORM_U64, offsetof(aggregator_status, boot)},
                                      {N_STATE, FORM_TEXT, offsetof(aggregator_status, state)},
                                      {N_WHY, FORM_TEXT, offsetof(aggregator_status, why)},
                                      {N_TOKEN, FORM_U64, offsetof(aggregator_status, token)}};
static const shape status_shape = {status_fields, COUNT(status_fields), 2, sizeof(aggregator_status), true};

/* A device's status: one's own come back, or that of another of the same name. */
typedef struct hello {
    unsigned kind, state;
    uint64_t outbox, number, to;
} hello;

static const field hello_fields[] = {{N_STATE, FORM_NAME, offsetof(hello, state)},
                                     {N_KIND, FORM_NAME, offsetof(hello, kind)},
                                     {N_OUTBOX, FORM_U64, offsetof(hello, outbox)},
                                     {N_NUMBER, FORM_U64, offsetof(hello, number)},
                                     {N_TO, FORM_U64, offsetof(hello, to)}};
static const shape hello_shape = SHAPE(hello_fields, 3, sizeof(hello));

/* One verdict of a receipt. */
typedef struct verdict {
    bytes text, why, body;
    unsigned word;
    uint32_t seq;
    float retry_after;
    bool repeat;
} verdict;

static const field verdict_fields[] = {{N_SEQ, FORM_CLAMPED, offsetof(verdict, seq)},
                                       {N_VERDICT, FORM_NAME, offsetof(verdict, word)},
                                       {N_VERDICT, FORM_TEXT, offsetof(verdict, text)},
                                       {N_WHY, FORM_TEXT, offsetof(verdict, why)},
                                       {N_BODY, FORM_BIN, offsetof(verdict, body)},
                                       {N_RETRY_AFTER, FORM_POSITIVE, offsetof(verdict, retry_after)},
                                       {N_REPEAT, FORM_TRUE, offsetof(verdict, repeat)}};
static const shape verdict_shape = SHAPE(verdict_fields, 0, sizeof(verdict));

/* The others settle nothing: the update is kept and sent again. */
static bool is_final(unsigned word)
{
    return word < N_BUSY || word > N_BAD_SIGNATURE;
}

/* Leave to send chunks of an update that was offered. */
typedef struct permission {
    uint32_t seq;
    list parts;
} permission;

static const field grant_fields[] = {{N_SEQ, FORM_CLAMPED, offsetof(permission, seq)},
                                     {N_PARTS, FORM_LIST, offsetof(permission, parts)}};
static const shape grant_shape = SHAPE(grant_fields, 2, sizeof(permission));

/* The aggregator's word to this device: a receipt, or why something was dropped. */
typedef struct word_to_us {
    unsigned kind;
    uint64_t outbox, token;
    uint32_t hi;
    list settled, grants;
    bytes why;
} word_to_us;

static const field word_fields[] = {{N_KIND, FORM_NAME, offsetof(word_to_us, kind)},
                                    {N_OUTBOX, FORM_U64, offsetof(word_to_us, outbox)},
                                    {N_HI, FORM_CLAMPED, offsetof(word_to_us, hi)},
                                    {N_TOKEN, FORM_U64, offsetof(word_to_us, token)},
                                    {N_WHY, FORM_TEXT, offsetof(word_to_us, why)},
                                    {N_SETTLED, FORM_LIST, offsetof(word_to_us, settled)},
                                    {N_GRANTS, FORM_LIST, offsetof(word_to_us, grants)}};
static const shape word_shape = SHAPE(word_fields, 1, sizeof(word_to_us));

/* One chunk of a frame. */
typedef struct part {
    uint8_t lineage[16], sha256[16];
    hop of; /* without its size */
    uint32_t part;
    unsigned kind;
} part;

static const field part_fields[] = {{N_LINEAGE, FORM_ID, offsetof(part, lineage)},
                                    {N_SHA256, FORM_ID, offsetof(part, sha256)},
                                    {N_VERSION, FORM_CLAMPED, offsetof(part, of.version)},
                                    {N_SPAN, FORM_CLAMPED, offsetof(part, of.span)},
                                    {N_PART, FORM_CLAMPED, offsetof(part, part)},
                                    {N_PARTS, FORM_CLAMPED, offsetof(part, of.parts)},
                                    {N_KIND, FORM_NAME, offsetof(part, kind)}};
static const shape part_shape = SHAPE(part_fields, 7, sizeof(part));

/* ============================================================================================== coded integers */

/* Bits, highest first. Beyond the end there are ones. */
typedef struct bit_stream {
    const uint8_t *data;
    uint32_t at, end; /* in bits */
} bit_stream;

static unsigned next_bit(bit_stream *b)
{
    uint32_t at = b->at++;
    return at < b->end ? (unsigned)b->data[at >> 3] >> (7u - (at & 7u)) & 1u : 1u;
}

/* A Rice coded number: its high part in unary from one stream, `low` bits from another. INT32_MAX: too large. */
static uint32_t next_rice(bit_stream *high, bit_stream *rest, unsigned low)
{
    uint32_t value = 0, most = (uint32_t)INT32_MAX >> low;
    while (next_bit(high) == 0)
        value++;
    if (value > most)
        return INT32_MAX;
    while (low-- > 0)
        value = value << 1 | next_bit(rest);
    return value;
}

/* The five streams of a block: unary and low bits of the zeros between values, signs, unary and low bits of the sizes.
 * And the table of its sections: how many values, a shift, and the two Rice parameters of each. */
typedef struct coded_block {
    const uint8_t *table;
    bit_stream stream[5];
} coded_block;

static bool open_block(bytes *body, uint32_t values, coded_block *b)
{
    uint32_t sections = (values + SECTION - 1u) / SECTION;
    if (body->size < 8 + 5u * (size_t)sections)
        return false;
    uint32_t bits[5] = {8u * least((uint32_t)get_le(body->data, 4), 1u << 28), 0, 0,
                        8u * least((uint32_t)get_le(body->data + 4, 4), 1u << 28), 0};
    const uint8_t *row = b->table = body->data + 8;
    for (; sections > 0; sections--, row += 5) {
        uint32_t here = (uint32_t)get_le(row, 2);
        if (here > SECTION || row[2] > WIDEST || row[3] > WIDEST || row[4] > WIDEST)
            return false;
        bits[1] += here * row[3]; /* of a block: at most 30 bits for each of 131,072 values */
        bits[2] += here;
        bits[4] += here * row[4];
    }
    *body = rest_of(*body, (size_t)(row - body->data));
    for (unsigned i = 0; i < 5; i++) {
        uint32_t size = (bits[i] + 7u) / 8u;
        if (size > body->size)
            return false;
        b->stream[i].data = body->data;
        b->stream[i].at = 0;
        b->stream[i].end = 8u * size;
        *body = rest_of(*body, size);
    }
    return true;
}

/* Add a section's integers to `n`, of which `length` are its own. */
static bool add_section(coded_block *b, int32_t *n, uint32_t length)
{
    bit_stream *s = b->stream;
    const uint8_t *row = b->table;
    uint32_t place = 0, count = (uint32_t)get_le(row, 2);
    for (; count > 0; count--, place++) {
        place += next_rice(&s[0], &s[1], row[3]);
        bool below = next_bit(&s[2]) != 0;
        uint32_t size = next_rice(&s[3], &s[4], row[4]) + 1u;
        if (place >= length || size > (uint32_t)INT32_MAX >> row[2])
            return false;
        int64_t step = (int64_t)(size << row[2]), sum = n[place] + (below ? -step : step);
        if (sum > INT32_MAX || sum < -INT32_MAX)
            return false;
        n[place] = (int32_t)sum;
    }
    return true;
}

/* Add `count` coded integers, which must fill the body, to `n`. If it fails, `n` is spoilt. */
static bool add_coded(bytes body, int32_t *n, uint32_t count)
{
    coded_block b;
    for (uint32_t values; count > 0; count -= values) {
        values = least(count, BLOCK);
        if (!open_block(&body, values, &b))
            return false;
        for (uint32_t left = values, some; left > 0; left -= some, n += some, b.table += 5) {
            some = least(left, SECTION);
            if (!add_section(&b, n, some))
                return false;
        }
        for (unsigned i = 0; i < 5; i++)
            if (b.stream[i].at > b.stream[i].end)
                return false;
    }
    return body.size == 0;
}

/* =================================================================================================== the model */

#define BEYOND (1u << 26) /* values of a tensor, which no arena holds: what is more is as much */

/* Sides of a tensor: their product, at most BEYOND. */
static uint32_t read_sides(reader *r, tensor *t)
{
    item sides, side;
    uint64_t size = 1;
    next_item(r, &sides);
    r->bad = r->bad || sides.kind != ITEM_ARRAY;
    t->sides = (uint32_t)sides.inside;
    for (size_t i = 0; i < sides.inside && !r->bad; i++) {
        next_item(r, &side);
        r->bad = r->bad || side.kind != ITEM_INT || side.number > BEYOND;
        size *= side.number;
        if (size > BEYOND)
            size = BEYOND;
        if (i == 0)
            t->rows = (uint32_t)size;
    }
    return (uint32_t)size;
}

/* Bytes of a value: the name ends with its bits. 0 if it is none. */
static uint32_t dtype_size(bytes name, unsigned word)
{
    uint32_t bits = word == N_BOOL ? 8 : 0;
    for (size_t i = 0; i < name.size; i++) {
        unsigned digit = name.data[i] - (unsigned)'0';
        if (digit < 10 && bits < 100)
            bits = bits * 10u + digit;
    }
    return bits <= 128 ? bits / 8u : 0;
}

/* One row of the schema: [name, [sides], dtype, role] and, of a tied tensor, the name of its other. */
static ONCE bool read_tensor(reader *r, tensor *t, uint32_t *shared, uint32_t *frozen)
{
    item row, name, dtype, role;
    next_item(r, &row);
    next_item(r, &name);
    uint32_t size = read_sides(r, t), *end = shared;
    next_item(r, &dtype);
    next_item(r, &role);
    uint32_t word = name_of(&dtype), each = dtype_size(dtype.data, word), place = name_of(&role) - N_TRAINED;
    if (r->bad || row.kind != ITEM_ARRAY || row.inside - 4u > 1 || name.kind != ITEM_TEXT || each == 0)
        return false;
    t->name = midge_crc32(0, name.data.data, name.data.size);
    t->is_float32 = word == N_FLOAT32;
    t->role = place < ELSEWHERE ? (enum role)place : ELSEWHERE;
    if (row.inside == 5) { /* tied: it travels under its other's name */
        next_item(r, &row);
        pass_over(r, &row);
        t->role = ELSEWHERE;
    }
    if (t->role == FROZEN) {
        size *= each;
        end = frozen;
    } else if (word == N_COMPLEX64)
        size *= 2;
    if (t->role < FROZEN && word != N_FLOAT32 && word != N_COMPLEX64)
        return false;
    t->at = *end;
    t->size = size;
    if (t->role != ELSEWHERE)
        *end += size;
    return *end <= INT32_MAX;
}

/* Read a schema; NULL, or why it cannot be taken. */
static const char *read_schema(midge *m, bytes schema)
{
    reader r = reader_of(schema);
    uint32_t shared = 0, frozen = 0;
    item rows;
    next_item(&r, &rows);
    if (rows.inside > MIDGE_TENSORS)
        return "too many tensors";
    for (size_t i = 0; i < rows.inside && !r.bad; i++)
        r.bad = !read_tensor(&r, &m->tensors[i], &shared, &frozen) || r.bad;
    if (r.bad || rows.kind != ITEM_ARRAY || r.at != r.end)
        return "wrong schema";
    if (shared > m->config.parameters)
        return "too many parameters";
    if (frozen > m->config.frozen)
        return "too many frozen bytes";
    m->tensor_count = (uint32_t)rows.inside;
    m->count = shared;
    m->frozen_size = frozen;
    return NULL;
}

/* The header of a snapshot or a step. */
typedef struct frame_header {
    int32_t exponent;
    unsigned kind;
    uint32_t schema, frozen, filling, size;
    bytes body;
} frame_header;

static bool read_frame(bytes payload, frame_header *f)
{
    static const field fields[] = {{N_EXPONENT, FORM_SIGNED, offsetof(frame_header, exponent)},
                                   {N_KIND, FORM_NAME, offsetof(frame_header, kind)},
                                   {N_SCHEMA, FORM_CLAMPED, offsetof(frame_header, schema)},
                                   {N_FROZEN, FORM_CLAMPED, offsetof(frame_header, frozen)},
                                   {N_FILLING, FORM_CLAMPED, offsetof(frame_header, filling)},
                                   {N_SIZE, FORM_CLAMPED, offsetof(frame_header, size)}};
    static const shape shape_of_frame = SHAPE(fields, 2, sizeof(frame_header));
    bool whole = read_header(&payload, &shape_of_frame, f);
    f->body = payload;
    return whole && f->exponent >= -40 && f->exponent <= 60;
}

/* Take a snapshot in; NULL, or why it cannot be. */
static const char *take_snapshot(midge *m, const frame_header *f)
{
    bytes schema = f->body, frozen = rest_of(f->body, f->schema), integers = rest_of(frozen, f->frozen);
    schema.size -= frozen.size;
    const char *why = read_schema(m, schema);
    if (why != NULL)
        return why;
    if (f->frozen != m->frozen_size || frozen.size < f->frozen || integers.size < f->filling)
        return "wrong frame";
    digest_of(schema.data, schema.size, m->schema_hash);
    if (f->frozen > 0)
        memcpy(m->frozen, frozen.data, f->frozen);
    memset(m->n, 0, sizeof *m->n * m->count);
    integers.size -= f->filling;
    m->exponent = f->exponent;
    return add_coded(integers, m->n, m->count) ? NULL : "wrong frame";
}

static const char *take_step(midge *m, const frame_header *f)
{
    bool right = f->size == m->count && f->exponent == m->exponent && add_coded(f->body, m->n, m->count);
    return right ? NULL : "wrong frame";
}

/* Digest of the state: schema hash, exponent, integers, frozen tensors. */
static void state_digest(const midge *m, uint8_t digest[16])
{
    midge_sha256 sha;
    uint8_t number[4] = {(uint8_t)m->exponent};
    midge_sha256_begin(&sha);
    midge_sha256_add(&sha, m->schema_hash, 16);
    midge_sha256_add(&sha, number, 1);
    for (uint32_t i = 0; i < m->count; i++) {
        put_le(number, (uint32_t)m->n[i], 4);
        midge_sha256_add(&sha, number, 4);
    }
    midge_sha256_add(&sha, m->frozen, m->frozen_size);
    end_digest(&sha, digest);
}

/* A published value: exact, because the exponent is within -40 and 60 and the product is normal. */
static ONCE float published(const midge *m, uint32_t i)
{
    return (float)m->n[i] * float_of((uint32_t)(m->exponent + 127) << 23);
}

static const tensor *find_tensor(const midge *m, const char *word)
{
    uint32_t name = midge_crc32(0, word, strlen(word));
    for (uint32_t i = 0; i < m->tensor_count; i++)
        if (m->tensors[i].name == name)
            return &m->tensors[i];
    return NULL;
}

/* Where the values of a frozen float32 tensor lie, and their number; 0 if there is none. */
static const uint8_t *frozen_floats(const midge *m, const char *name, uint32_t *count)
{
    const tensor *t = find_tensor(m, name);
    *count = t == NULL || t->role != FROZEN || !t->is_float32 ? 0 : t->size / 4u;
    return *count == 0 ? NULL : m->frozen + t->at;
}

static float float_at(const uint8_t *floats, uint32_t index)
{
    return float_of((uint32_t)get_le(floats + 4 * index, 4));
}

/* ------------------------------------------------------------------------------------------ the way to a version */

typedef struct offers {
    bytes left;
    bool any;
    hop found;
} offers;

/* A number that no board reaches is clamped. */
static ONCE bool next_number(bytes *data, uint32_t *number)
{
    uint64_t found;
    bool right = next_leb128(data, &found);
    *number = clamped(found);
    return right;
}

/* The next frame that is on offer, newest version first; false at the end, or where the list is wrong. */
static bool next_offer(offers *o)
{
    hop *f = &o->found;
    uint64_t first; /* holds a version, so it may have more than 32 bits */
    if (!next_leb128(&o->left, &first))
        return false;
    f->span = (uint32_t)first >> 1 & 31u;
    f->parts = 1;
    if ((f->span == 31 && !next_number(&o->left, &f->span)) || !next_number(&o->left, &f->size) ||
        ((first & 1u) && !next_number(&o->left, &f->parts)))
        return false;
    first >>= 6;
    if (o->any)
        first = f->version - first; /* below 0 it is beyond 32 bits */
    f->version = (uint32_t)first;
    o->any = true;
    return first < NOWHERE;
}

/* A version from which the target can be reached: by which frame first, and at what cost. */
typedef struct stage {
    uint32_t version, cost;
    hop next;
} stage;

#define STAGES (MIDGE_SCRATCH / sizeof(stage))
#define FRAME_COST 200u /* bytes that a frame costs beside itself: topics, subscriptions, headers */

static stage *find_stage(stage *stages, size_t count, uint32_t version)
{
    for (size_t i = 0; i < count; i++)
        if (stages[i].version == version)
            return &stages[i];
    return NULL;
}

/* Plan the cheapest way to the target from what is held, backwards from it: frames come newest first, so the cost of
 * the version that a frame leads to is known when the frame comes. A snapshot leads from NOWHERE. False if there is no
 * way that fits. */
static bool plan_way(midge *m, bytes frames, uint32_t to)
{
    stage *stages = (stage *)(void *)m->scratch;
    size_t count = 2;
    offers o = {frames, false, {0, 0, 0, 0}};
    stages[0].version = to;
    stages[0].cost = 0;
    stages[1].version = NOWHERE;
    stages[1].cost = UINT32_MAX;
    while (next_offer(&o)) {
        const hop *f = &o.found;
        const stage *end = find_stage(stages, count, f->version);
        if (end == NULL || f->size > m->frame_room || f->parts == 0 || f->parts > f->size + 1u || f->span > f->version)
            continue;
        uint32_t cost = end->cost + f->size + FRAME_COST; /* at most STAGES frames that fit an arena */
        uint32_t version = f->span == 0 ? NOWHERE : f->version - f->span;
        stage *from = find_stage(stages, count, version);
        if (from == NULL && count < STAGES) {
            from = &stages[count++];
            from->version = version;
            from->cost = UINT32_MAX;
        }
        if (from != NULL && cost < from->cost) {
            from->cost = cost;
            from->next = *f;
        }
    }
    const stage *here = m->have ? find_stage(stages, count, m->held.version) : NULL;
    if (here == NULL || here->cost >= stages[1].cost)
        here = &stages[1];
    m->hop_count = m->hop_at = 0;
    if (here->cost == UINT32_MAX)
        return false;
    for (; here->version != to && m->hop_count < MIDGE_HOPS; here = find_stage(stages, count, here->next.version))
        m->hops[m->hop_count++] = here->next;
    return true;
}

/* ====================================================================================================== codecs */

/* Takes the bytes of a body: counts them, digests them, and writes them to flash, as asked. */
typedef struct sink {
    midge *m;
    midge_sha256 *sha; /* NULL: no digest is wanted */
    uint32_t flash;    /* where it is written; 0: it is not */
    uint32_t size, crc;
    uint8_t piece[64];
    unsigned filled, accumulated, held; /* the last two: bits that make no byte yet */
    bool failed;
} sink;

static void flush(sink *s, bool last)
{
    if (s->sha != NULL)
        midge_sha256_add(s->sha, s->piece, s->filled);
    s->crc = midge_crc32(s->crc, s->piece, s->filled);
    if (s->flash != 0 && s->filled > 0) {
        unsigned whole = last ? aligned16(s->filled) : s->filled;
        memset(s->piece + s->filled, 0, whole - s->filled);
        s->failed = s->failed || !flash_write(s->m, s->flash, s->piece, whole);
        s->flash += whole;
    }
    s->filled = 0;
}

static ONCE void put(sink *s, unsigned byte)
{
    s->piece[s->filled++] = (uint8_t)byte;
    s->size++;
    if (s->filled == sizeof s->piece)
        flush(s, false);
}

static ONCE void put_number(sink *s, uint32_t value, unsigned size)
{
    for (; size > 0; size--, value >>= 8)
        put(s, value & 0xffu);
}

#if MIDGE_UNIFORM
static void fill_byte(sink *s)
{
    if (s->held > 0)
        put(s, s->accumulated);
    s->held = s->accumulated = 0;
}

enum { LOWEST_FIRST = 0, HIGHEST_FIRST = 7 };

static void put_bit(sink *s, unsigned bit, unsigned order)
{
    s->accumulated |= bit << (s->held ^ order);
    if (++s->held == 8)
        fill_byte(s);
}
#endif

typedef struct codec {
    enum { FLOAT32, INT8, UNIFORM } kind;
    uint32_t number; /* in hundredths: of int8 the values of a block, of uq the step in root mean squares */
} codec;

/* A number of at most two decimals, in hundredths; `text` is then behind it. */
static ONCE uint32_t hundredths(const char **text)
{
    uint32_t value = 0, left = 3; /* decimals that may come; 3 before the point */
    for (;; ++*text) {
        unsigned digit = (unsigned)(unsigned char)**text - (unsigned)'0';
        if (**text == '.' && left == 3)
            left = 2;
        else if (digit < 10 && left > 0 && value < 10000000u) {
            value = value * 10u + digit;
            left -= left < 3 ? 1u : 0;
        } else
            break;
    }
    return left == 0 ? value : left == 1 ? value * 10u : value * 100u;
}

/* The codec of a name; false for one that is not known here. */
static ONCE bool parse_codec(const char *word, codec *found)
{
    bool int8 = strncmp(word, "int8", 4) == 0;
    found->number = 25600;
    found->kind = FLOAT32;
    if (strcmp(word, "float32") == 0)
        return true;
    found->kind = int8 ? INT8 : UNIFORM;
    if (!int8 && (!MIDGE_UNIFORM || strncmp(word, "uq:", 3) != 0))
        return false;
    word += int8 ? 4 : 2;
    if (*word == ':') {
        word++;
        found->number = hundredths(&word);
    }
    return strcmp(word, int8 ? "" : "|rice") == 0 &&
           (int8 ? found->number >= 1600 && found->number <= 6553600 : found->number > 0);
}

/* What the plan asks for. Where uq wants feedback and a slot has no room for it, what the plan has for such devices;
 * and int8:256 for what is not known here. */
static codec choose_codec(const midge *m, char word[24])
{
    const midge_plan *plan = &m->target.plan;
    const char *const asked[3] = {plan->codec, plan->micro_codec, "int8:256"};
    bool any = m->config.feedback || !plan->feedback;
    codec found = {FLOAT32, 0};
    for (unsigned i = 0; i < 3; i++, any = false) {
        strncpy(word, asked[i], 23); /* the last of the 24 is 0 in every record */
        if (parse_codec(word, &found) && (any || found.kind != UNIFORM))
            break;
    }
    return found;
}

/* Which tensors: a bit for each class. To a codec, trained ones are small or large. */
enum { LARGE = ELSEWHERE + 1, SMALL_ONES = 1 << TRAINED, LARGE_ONES = 1 << LARGE, AVERAGED_ONES = 1 << AVERAGED,
       TRAINED_ONES = SMALL_ONES | LARGE_ONES, SHARED_ONES = TRAINED_ONES | AVERAGED_ONES };

static bool is_of(const tensor *t, unsigned classes)
{
    return (classes >> (t->role == TRAINED && t->size > SMALL ? LARGE : (unsigned)t->role) & 1u) != 0;
}

/* A place in the values of some classes, as if they lay together. */
typedef struct walk {
    const midge *m;
    const tensor *t;
    uint32_t at;
    unsigned classes;
} walk;

static walk walk_over(const midge *m, unsigned classes)
{
    walk w = {m, m->tensors, 0, classes};
    return w;
}

static ONCE const float *next_value(walk *w)
{
    for (; w->t < w->m->tensors + w->m->tensor_count; w->t++, w->at = 0)
        if (w->at < w->t->size && is_of(w->t, w->classes))
            return &w->m->w[w->t->at + w->at++];
    return NULL;
}

/* Rounded to nearest, ties to even: in steps, and within a limit. */
static ONCE int32_t quantised(float value, float step, float top)
{
    float q = rintf(value * (step > SMALLEST ? 1.0f / step : 0.0f));
    return (int32_t)(q > top ? top : q < -top ? -top : q);
}

/* The scale of the next values of int8, or of a small tensor. */
static float scale_of(const walk *from, uint32_t count)
{
    walk w = *from;
    float most = 0;
    for (const float *v; count > 0 && (v = next_value(&w)) != NULL; count--)
        if (fabsf(*v) > most)
            most = fabsf(*v);
    return most / 127.0f;
}

static void put_floats(const midge *m, unsigned classes, sink *s)
{
    walk w = walk_over(m, classes);
    for (const float *v; (v = next_value(&w)) != NULL;)
        put_number(s, bits_of(*v), 4);
}

/* The scales of all blocks, then all values. */
static void put_int8(const midge *m, uint32_t block, sink *s)
{
    for (unsigned pass = 0; pass < 2; pass++) {
        walk w = walk_over(m, TRAINED_ONES), before = w;
        float scale = 0;
        uint32_t left = 0; /* of the block */
        for (const float *v; (v = next_value(&w)) != NULL; before = w, left--) {
            if (left == 0) {
                left = block;
                scale = scale_of(&before, block);
                if (pass == 0)
                    put_number(s, bits_of(scale), 4);
            }
            if (pass == 1)
                put(s, (unsigned)quantised(*v, scale, 127.0f));
        }
    }
}

#if MIDGE_UNIFORM
static ONCE int32_t level(const tensor *t, float value)
{
    return quantised(value, t->step, t->size <= SMALL ? 127.0f : 32767.0f);
}

/* What an update leaves unsaid of a value. */
static float unsaid(const midge *m, const tensor *t, float value)
{
    if (m->says == NOTHING)
        return value;
    float said = (float)level(t, value) * t->step;
    return m->says == LEVELS && t->role == TRAINED ? value - said : 0;
}

/* Energy of what is left unsaid of the next values. */
static double energy(const walk *from, uint32_t count)
{
    walk w = *from;
    double sum = 0;
    for (const float *v; count > 0 && (v = next_value(&w)) != NULL; count--) {
        double missing = (double)unsaid(w.m, w.t, *v);
        sum += missing * missing;
    }
    return sum;
}

/* The steps of all tensors. That of a large one is k times its root mean square, and half of that, up to eight times,
 * while it says less than 2 % of the energy. */
static void find_steps(midge *m, const codec *k)
{
    walk w = walk_over(m, TRAINED_ONES);
    for (tensor *t = m->tensors; t < m->tensors + m->tensor_count; t++) {
        w.t = t;
        t->step = 0;
        if (t->size <= SMALL) {
            t->step = scale_of(&w, t->size);
            continue;
        }
        double all = energy(&w, t->size), wide = (double)k->number / 100 * sqrt(all / (double)t->size);
        t->step = finite_or((float)wide, 3.4028234663852886e38f);
        for (unsigned i = 0; i < 8 && energy(&w, t->size) > (1 - 0.02) * all; i++)
            t->step *= 0.5f;
    }
}

static void put_steps(const midge *m, unsigned classes, sink *s)
{
    for (const tensor *t = m->tensors; t < m->tensors + m->tensor_count; t++)
        if (t->size > 0 && is_of(t, classes))
            put_number(s, bits_of(t->step), 4);
}

/* The next level of the large tensors that is not zero, and how many zeros before it. */
static bool next_level(walk *w, uint32_t *zeros, int32_t *found)
{
    *zeros = 0;
    for (const float *v; (v = next_value(w)) != NULL; ++*zeros) {
        *found = level(w->t, *v);
        if (*found != 0)
            return true;
    }
    return false;
}

/* The next numbers that share a parameter; how many there are. */
static uint32_t next_group(walk *w, bool sizes)
{
    uint32_t count = 0, zeros;
    int32_t value;
    while (count < GROUP && next_level(w, &zeros, &value))
        w->m->scratch[count++] = sizes ? (uint32_t)(value < 0 ? -value : value) - 1u : zeros;
    return count;
}

/* Bits of the unary part of a group. */
static ONCE uint32_t unary_bits(const uint32_t *numbers, uint32_t count, unsigned low)
{
    uint32_t bits = count;
    for (uint32_t i = 0; i < count; i++)
        bits += numbers[i] >> low;
    return bits;
}

/* The Rice parameter that makes a group shortest. Numbers are below 2^22, and there are at most 256. */
static unsigned rice_parameter(const uint32_t *numbers, uint32_t count)
{
    uint32_t shortest = unary_bits(numbers, count, 0), mean = shortest / count - 1u;
    unsigned best = 0;
    for (unsigned low = 1; mean >> (low - 1u) > 0; low++) {
        uint32_t bits = unary_bits(numbers, count, low) + low * count;
        if (bits < shortest) {
            shortest = bits;
            best = low;
        }
    }
    return best;
}

/* Three streams: the parameters, the unary parts after their size in bytes, the low bits. */
static void put_numbers(const midge *m, bool sizes, sink *s)
{
    uint32_t unary = 0, count;
    for (unsigned stream = 0; stream < 3; stream++) {
        walk w = walk_over(m, LARGE_ONES);
        while ((count = next_group(&w, sizes)) > 0) {
            unsigned low = rice_parameter(m->scratch, count);
            if (stream == 0) {
                put(s, low);
                unary += unary_bits(m->scratch, count, low);
            }
            for (uint32_t i = 0; stream > 0 && i < count; i++) {
                uint32_t number = m->scratch[i], bits = stream == 1 ? (number >> low) + 1u : low;
                while (bits-- > 0)
                    put_bit(s, stream == 1 ? bits == 0 : number >> bits & 1u, HIGHEST_FIRST);
            }
        }
        if (stream == 0)
            put_number(s, (unary + 7u) / 8u, 4);
        fill_byte(s);
    }
}

static void put_uniform(const midge *m, sink *s)
{
    uint32_t count = 0, zeros;
    int32_t value;
    walk small = walk_over(m, SMALL_ONES), large = walk_over(m, LARGE_ONES), again = large;
    put(s, 1);
    put_steps(m, SMALL_ONES, s);
    for (const float *v; (v = next_value(&small)) != NULL;)
        put(s, (unsigned)level(small.t, *v));
    put_steps(m, LARGE_ONES, s);
    while (next_level(&large, &zeros, &value))
        count++;
    if (next_value(&again) == NULL)
        return; /* no large tensor: no places */
    put_number(s, count, 4);
    put_numbers(m, false, s);
    again = walk_over(m, LARGE_ONES);
    while (next_level(&again, &zeros, &value))
        put_bit(s, value < 0, LOWEST_FIRST);
    fill_byte(s);
    put_numbers(m, true, s);
}
#endif

static void encode(const midge *m, const codec *k, sink *s)
{
    if (k->kind == INT8)
        put_int8(m, k->number / 100u, s);
#if MIDGE_UNIFORM
    else if (m->says == LEVELS)
        put_uniform(m, s);
#endif
    else {
        if (k->kind == UNIFORM)
            put(s, 0);
        put_floats(m, TRAINED_ONES, s);
    }
    put_floats(m, AVERAGED_ONES, s);
    flush(s, true);
}

#if MIDGE_UNIFORM
/* Whether levels are worth their bytes. Values are finite. */
static void prepare(midge *m, const codec *k)
{
    walk w = walk_over(m, TRAINED_ONES);
    uint32_t plain = 0;
    sink coded;
    memset(&coded, 0, sizeof coded);
    m->says = LEVELS;
    find_steps(m, k);
    put_uniform(m, &coded);
    while (next_value(&w) != NULL)
        plain += 4;
    if (coded.size >= plain)
        m->says = EVERYTHING;
}

/* The upper half of a float32, rounded to nearest even; what would round to infinity is the largest. */
static uint32_t bfloat16(float value)
{
    uint32_t bits = bits_of(value), half = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return (half & 0x7fffu) > 0x7f7fu ? (half & 0x8000u) | 0x7f7fu : half & 0xffffu;
}

/* What is left to say with the next update, times `factor`. */
static void put_left(const midge *m, float factor, sink *s)
{
    walk w = walk_over(m, SHARED_ONES);
    for (const float *v; (v = next_value(&w)) != NULL;)
        put_number(s, bfloat16(unsaid(m, w.t, *v) * factor), 2);
    flush(s, true);
}

/* The clip: what is left is at most twice the median norm of the last deltas. */
static float left_factor(const midge *m, record *r, double norm)
{
    float sorted[NORMS];
    walk w = walk_over(m, SHARED_ONES);
    r->norms[r->norm_count++ % NORMS] = (float)norm;
    uint32_t count = least(r->norm_count, NORMS);
    memcpy(sorted, r->norms, sizeof sorted);
    for (uint32_t i = 1; i < count; i++)
        for (uint32_t k = i; k > 0 && sorted[k] < sorted[k - 1]; k--) {
            float moved = sorted[k];
            sorted[k] = sorted[k - 1];
            sorted[k - 1] = moved;
        }
    double most = (double)sorted[count / 2] + (double)sorted[(count - 1) / 2], left = sqrt(energy(&w, UINT32_MAX));
    return left > most ? (float)(most / left) : 1.0f;
}
#endif

/* ================================================================================================== the outbox */

/* The record is written whole, to the slot that does not count, and counts once its checksums are right: so a power cut
 * at any write leaves the one before. An update that is stored counts as sent; that it is settled need not be written,
 * because the aggregator says so again whenever it is greeted. */

#define MAGIC 0x3247444du /* "MDG2": the layout of the record */

static uint32_t slot_start(const midge *m, unsigned slot)
{
    return slot * m->config.slot;
}

static uint32_t body_start(const midge *m, unsigned slot)
{
    return slot_start(m, slot) + MIDGE_META;
}

/* The checksum of what is stored; and copy that, unless it goes where it is. */
static bool copy_stored(const midge *m, uint32_t at, uint32_t size, uint32_t to, uint32_t *crc)
{
    uint8_t piece[64];
    *crc = 0;
    for (uint32_t some; size > 0; size -= some, at += some, to += some) {
        some = least(size, sizeof piece);
        if (!flash_read(m, at, piece, aligned16(some)) || (to != at && !flash_write(m, to, piece, aligned16(some))))
            return false;
        *crc = midge_crc32(*crc, piece, some);
    }
    return true;
}

static ONCE bool stored_as(const midge *m, uint32_t at, uint32_t size, uint32_t crc)
{
    uint32_t found;
    return copy_stored(m, at, size, at, &found) && found == crc;
}

static uint32_t meta_crc(const record *r)
{
    return midge_crc32(0, (const uint8_t *)r + 8, sizeof *r - 8);
}

static bool record_fits(const midge *m, const record *r)
{
    uint32_t room = m->config.slot - MIDGE_META;
    return r->size < room && r->left < room && aligned16(r->size) + 2u * r->left <= room;
}

static bool read_record(const midge *m, unsigned slot, record *r)
{
    uint32_t at = body_start(m, slot);
    return flash_read(m, slot_start(m, slot), r, sizeof *r) && r->magic == MAGIC && r->crc == meta_crc(r) &&
           record_fits(m, r) && stored_as(m, at, r->size, r->body_crc) &&
           stored_as(m, at + aligned16(r->size), 2u * r->left, r->left_crc);
}

/* Where the next record goes: to the slot that does not count. */
static bool write_meta(midge *m, record *r)
{
    r->magic = MAGIC;
    r->counter = m->outbox.counter + 1u;
    r->crc = meta_crc(r);
    return flash_write(m, slot_start(m, m->slot ^ 1u), r, sizeof *r);
}

/* What was written counts if it reads back. */
static bool settle_on(midge *m, const record *r)
{
    record found;
    if (!read_record(m, m->slot ^ 1u, &found) || memcmp(&found, r, sizeof found) != 0)
        return false;
    m->outbox = found;
    m->slot ^= 1u;
    return true;
}

/* A record with the body and what is left of the one that counts. */
static bool rewrite(midge *m, record *r)
{
    uint32_t crc, size = aligned16(r->size) + 2u * r->left;
    return write_meta(m, r) && copy_stored(m, body_start(m, m->slot), size, body_start(m, m->slot ^ 1u), &crc) &&
           settle_on(m, r);
}

static ONCE uint64_t new_identity(midge *m)
{
    return draw(m) >> 1;
}

static bool begin_outbox(midge *m)
{
    record other;
    bool first = read_record(m, 0, &m->outbox), second = read_record(m, 1, &other);
    if (second && (!first || (int32_t)(other.counter - m->outbox.counter) > 0)) {
        m->outbox = other;
        m->slot = 1;
    }
    if (first || second)
        return true;
    memset(&other, 0, sizeof other);
    m->slot = 1;
    other.outbox = new_identity(m);
    other.next = 1;
    return rewrite(m, &other);
}

static uint32_t first_held(const midge *m)
{
    return m->outbox.seq > 0 ? m->outbox.seq : m->outbox.next;
}

/* A new identity, because the aggregator knows more of this outbox than it does of itself. `keep` moves the update over:
 * it was never decided on. */
static void renew(midge *m, bool keep)
{
    record made = m->outbox;
    made.outbox = new_identity(m);
    made.seq = keep ? 1 : 0;
    made.next = made.seq + 1;
    if (!keep)
        made.size = made.left = made.body_crc = made.left_crc = 0;
    if (rewrite(m, &made))
        tell(m, MIDGE_RENEWED, made.outbox);
    m->link = LINK_DOWN; /* its client id and Will are of the old identity */
    m->work = WORK_NONE;
}

#if MIDGE_UNIFORM
/* Add what was left before, if it is of this lineage and schema. */
static bool add_left(midge *m)
{
    const record *r = &m->outbox;
    uint8_t piece[64];
    uint32_t at = body_start(m, m->slot) + aligned16(r->size);
    if (r->left != m->count || memcmp(&r->of, &m->target.of, offsetof(origin, generation)) != 0)
        return true;
    for (uint32_t i = 0; i < r->left; i++) {
        if (i % 32 == 0 && !flash_read(m, at + 2 * i, piece, least(2 * (r->left - i), sizeof piece)))
            return false;
        m->w[i] += float_of((uint32_t)get_le(piece + 2 * (i % 32), 2) << 16);
    }
    return true;
}
#endif

static ONCE void take_metrics(const midge_fit *fit, float metrics[2])
{
    metrics[0] = finite_or(fit->loss, -1);
    metrics[1] = finite_or(fit->accuracy, -1);
}

/* Encode what `w` holds beyond the published values, and store it as the next update. */
static midge_result store(midge *m, const midge_fit *fit)
{
    const midge_plan *plan = &m->target.plan;
    record r = m->outbox;
    codec k = choose_codec(m, r.codec);
    midge_sha256 sha;
    sink s;
    for (uint32_t i = 0; i < m->count; i++)
        m->w[i] -= published(m, i);
#if MIDGE_UNIFORM
    walk all = walk_over(m, SHARED_ONES);
    float factor = 0;
    m->says = NOTHING;
    double norm = sqrt(energy(&all, UINT32_MAX));
    if (plan->feedback && !add_left(m))
        return MIDGE_NO_FLASH;
#endif
    for (uint32_t i = 0; i < m->count; i++)
        if (!finite_float(m->w[i]))
            return MIDGE_NOT_FINITE;
    r.seq = r.next++;
    r.of = m->target.of;
    r.examples = fit->examples;
    r.steps = fit->steps;
    r.seconds = finite_or(fit->seconds, 0);
    take_metrics(fit, r.metrics);
    r.revision = plan->revision;
    r.loses = k.kind == UNIFORM && !plan->feedback;
    midge_sha256_begin(&sha);
#if MIDGE_UNIFORM
    if (k.kind == UNIFORM)
        prepare(m, &k);
#endif
    for (unsigned pass = 0; pass < 2; pass++) { /* what comes out, and then into flash behind its record */
        memset(&s, 0, sizeof s);
        s.m = m;
        if (pass == 0)
            s.sha = &sha;
        else
            s.flash = body_start(m, m->slot ^ 1u);
        encode(m, &k, &s);
        r.size = s.size;
        r.body_crc = s.crc;
        s.sha = NULL;
        s.size = s.crc = 0;
#if MIDGE_UNIFORM
        if (k.kind == UNIFORM && plan->feedback) {
            if (pass == 0)
                factor = left_factor(m, &r, norm);
            put_left(m, factor, &s);
        }
#endif
        r.left = s.size / 2u;
        r.left_crc = s.crc;
        if (pass > 0)
            break;
        end_digest(&sha, r.sha256);
        if (!record_fits(m, &r) || !write_meta(m, &r))
            return MIDGE_NO_FLASH;
    }
    return !s.failed && settle_on(m, &r) ? MIDGE_DONE : MIDGE_NO_FLASH;
}

/* ==================================================================================================== training */

#if MIDGE_TRAINING
/* c[0] times x to the power of n - 1, and so on to c[n - 1]. */
static float polynomial(const float *c, unsigned n, float x)
{
    float sum = 0;
    for (; n > 0; n--)
        sum = sum * x + *c++;
    return sum;
}

/* Of a number that is not above 0. The same bits on every processor, unlike those of C libraries; within 2 units of the
 * last place. */
static ONCE float exponential(float x)
{
    static const float c[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                              4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    if (x < -87.0f)
        return 0;
    float k = rintf(x * 1.44269504f), r = x - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
    return (polynomial(c, COUNT(c), r) * (r * r) + r + 1.0f) * float_of((uint32_t)((int32_t)k + 127) << 23);
}

/* Of a normal number above 0, to 1e-6: for people. */
static float logarithm(float x)
{
    static const float c[] = {0.111111111f, 0.142857143f, 0.2f, 0.333333333f, 1.0f};
    float m = float_of((bits_of(x) & 0x7fffffu) | 0x3f800000u), t = (m - 1.0f) / (m + 1.0f);
    return 2.0f * t * polynomial(c, COUNT(c), t * t) + (float)((int32_t)(bits_of(x) >> 23) - 127) * 0.693147181f;
}

/* A layer, and for each row its inputs, its outputs and their slopes. */
typedef struct layer {
    float *w, *bias, *x, *out, *slope;
    uint32_t inputs, outputs;
} layer;

/* Frozen means and deviations of the inputs, one or one each, or of the target; none if the count is 0. */
typedef struct scaling {
    const uint8_t *mean, *deviation;
    uint32_t count;
} scaling;

/* Some rows on their way through the layers. Slopes of the last one's outputs come in their place. */
typedef struct batch {
    const midge *m;
    const midge_model *model;
    layer layers[2], *last;
    scaling inputs, target;
    float *y; /* the targets */
    uint32_t rows;
} batch;

static void find_scaling(const midge *m, const char *mean, const char *deviation, uint32_t wanted, scaling *s)
{
    uint32_t other;
    s->mean = frozen_floats(m, mean, &s->count);
    s->deviation = frozen_floats(m, deviation, &other);
    if (s->count != other || (s->count != 1 && s->count != wanted))
        s->count = 0;
}

static float scaled(const scaling *s, uint32_t index, float value)
{
    if (s->count == 0)
        return value;
    if (s->count == 1)
        index = 0;
    return (value - float_at(s->mean, index)) / float_at(s->deviation, index);
}

static void open_batch(batch *b, const midge *m, const midge_model *model, float *work, uint32_t rows)
{
    const uint32_t widths[3] = {model->inputs, model->hidden > 0 ? model->hidden : model->outputs, model->outputs};
    layer *l = b->layers;
    b->m = m;
    b->model = model;
    b->last = model->hidden > 0 ? l + 1 : l;
    for (unsigned i = 0; l <= b->last; l++, i++) {
        l->w = m->w + model->weight[i];
        l->bias = m->w + model->bias[i];
        l->inputs = widths[i];
        l->outputs = widths[i + 1];
        l->x = work;
        l->out = l->slope = work += rows * l->inputs;
        if (l == b->last)
            work += rows * l->outputs;
        else
            l->slope = work + rows * (l->outputs + model->outputs); /* behind all that comes */
    }
    b->y = work + rows * model->hidden;
    find_scaling(m, "input_mean", "input_scale", model->inputs, &b->inputs);
    find_scaling(m, "target_mean", "target_scale", 1, &b->target);
}

/* Take a row in; 0 where a value is missing. */
static void take_row(batch *b, midge_row row, void *context, uint32_t index)
{
    uint32_t inputs = b->model->inputs;
    float *x = b->layers->x + b->rows * inputs, *y = b->y + b->rows++;
    *y = 0;
    row(context, index, x, y);
    for (uint32_t i = 0; i < inputs; i++)
        x[i] = finite_or(scaled(&b->inputs, i, x[i]), 0);
    if (b->model->task == MIDGE_REGRESSION)
        *y = scaled(&b->target, 0, *y);
}

/* With ReLU between layers. */
static void forward(batch *b)
{
    for (layer *l = b->layers; l <= b->last; l++) {
        const float *x = l->x;
        float *out = l->out;
        for (uint32_t r = 0; r < b->rows; r++, x += l->inputs) {
            const float *w = l->w;
            for (uint32_t o = 0; o < l->outputs; o++) {
                float sum = l->bias[o];
                for (uint32_t i = 0; i < l->inputs; i++)
                    sum += *w++ * x[i];
                *out++ = l < b->last && !(sum > 0) ? 0 : sum;
            }
        }
    }
}

/* Cross-entropy of one row, and the slopes in place of the outputs. A single one stands against 0, and its label may be
 * anything from 0 to 1. */
static float cross_entropy(float *o, uint32_t outputs, float label, bool *right)
{
    uint32_t which = 0, best = 0;
    float top = *o, sum = 0;
    if (outputs == 1) {
        *right = (top >= 0) == (label > 0.5f);
        top = top > 0 ? top : 0;
        sum = exponential(-top);
    } else {
        if (label > 0 && label < (float)outputs)
            which = (uint32_t)label;
        for (uint32_t i = 1; i < outputs; i++)
            if (o[i] > o[best])
                best = i;
        top = o[best];
        *right = best == which;
        label = 1.0f;
    }
    float said = o[which] * label - top;
    for (uint32_t i = 0; i < outputs; i++) {
        o[i] = exponential(o[i] - top);
        sum += o[i];
    }
    for (uint32_t i = 0; i < outputs; i++)
        o[i] /= sum;
    o[which] -= label;
    return logarithm(sum) - said;
}

/* Losses of the batch, summed up; slopes of the mean loss in place of the outputs. */
static float slopes(batch *b, uint32_t *right)
{
    float loss = 0, *o = b->last->out;
    for (uint32_t r = 0; r < b->rows; r++) {
        uint32_t outputs = b->model->outputs;
        float factor = 1.0f;
        bool hit = false;
        if (b->model->task == MIDGE_REGRESSION) {
            *o -= b->y[r];
            loss += *o * *o;
            factor = 2.0f;
        } else
            loss += cross_entropy(o, outputs, b->y[r], &hit);
        *right += hit ? 1u : 0;
        for (; outputs > 0; outputs--)
            *o++ *= factor / (float)b->rows;
    }
    return loss;
}

/* One step on a layer: the gradient is the sum over rows of slope times input, which of a bias is 1. */
static void descend(const batch *b, const layer *l, float rate, float pull)
{
    float *w = l->w;
    for (uint32_t o = 0; o < l->outputs; o++)
        for (uint32_t i = 0; i <= l->inputs; i++) {
            float *at = i < l->inputs ? w++ : &l->bias[o], sum = 0;
            for (uint32_t r = 0; r < b->rows; r++)
                sum += l->slope[r * l->outputs + o] * (i < l->inputs ? l->x[r * l->inputs + i] : 1.0f);
            if (pull > 0)
                sum += pull * (*at - published(b->m, (uint32_t)(at - b->m->w)));
            *at -= rate * sum;
        }
}

static void backward(const batch *b, float rate, float pull)
{
    const layer *first = b->layers, *last = b->last;
    if (last > first) {
        for (uint32_t r = 0, at = 0; r < b->rows; r++)
            for (uint32_t h = 0; h < first->outputs; h++, at++) {
                float sum = 0;
                for (uint32_t o = 0; o < last->outputs; o++)
                    sum += last->slope[r * last->outputs + o] * last->w[o * last->inputs + h];
                first->slope[at] = first->out[at] > 0 ? sum : 0;
            }
        descend(b, last, rate, pull);
    }
    descend(b, first, rate, pull);
}

bool midge_model_of(const midge *m, midge_task task, midge_model *model)
{
    char weights[] = "layers.0.weight", biases[] = "layers.0.bias";
    memset(model, 0, sizeof *model);
    model->task = task;
    for (unsigned i = 0;; i++) {
        weights[7] = biases[7] = (char)('0' + 2 * i);
        const tensor *weight = find_tensor(m, weights), *bias = find_tensor(m, biases);
        if (i > 0 && weight == NULL)
            return task == MIDGE_CLASSIFICATION || model->outputs == 1;
        if (i > 1 || weight == NULL || bias == NULL || weight->role != TRAINED || bias->role != TRAINED ||
            weight->size == 0 || weight->sides != 2 || bias->size != weight->rows ||
            (i == 1 && weight->size / weight->rows != model->outputs))
            return false;
        model->weight[i] = weight->at;
        model->bias[i] = bias->at;
        model->hidden = model->outputs;
        model->outputs = weight->rows;
        if (i == 0)
            model->inputs = weight->size / weight->rows;
    }
}

/* Pass over rows in batches as a plan says; the device's own is trained by. Each row comes once before one comes again,
 * in an order that needs no memory: a generator of full period over the next power of two. */
static midge_fit pass_rows(midge *m, const midge_model *model, midge_row row, void *context, uint32_t rows, float *work,
                           size_t size, const midge_plan *plan)
{
    midge_fit fit = {0, 0, 0, -1, -1};
    batch b;
    bool trains = plan == &m->target.plan;
    uint32_t each = plan->batch_size > 0 ? plan->batch_size : 8, right = 0, seen = 0, taken = 0, mask = 1;
    each = least(least(each, rows), (uint32_t)(size / MIDGE_WORK(model->inputs, model->hidden, model->outputs, 1)));
    if (m->work != WORK_TRAIN || each == 0)
        return fit;
    open_batch(&b, m, model, work, each);
    uint32_t steps = (rows + each - 1u) / each * (plan->epochs > 0 ? plan->epochs : 1);
    if (plan->local_steps > 0)
        steps = plan->local_steps;
    if (plan->seconds > 0)
        steps = plan->most_steps;
    uint32_t at = (uint32_t)draw(m), add = (uint32_t)draw(m) | 1u, began = m->port.now(m->port.context);
    while (mask < rows - 1u)
        mask = mask << 1 | 1u;
    float rate = plan->learning_rate > 0 ? plan->learning_rate : 0.05f, loss = 0;
    while (fit.steps < steps) {
        for (b.rows = 0; b.rows < each && taken < rows; taken++) {
            do
                at = (at * 5u + add) & mask;
            while (at >= rows);
            take_row(&b, row, context, at);
        }
        if (taken >= rows)
            taken = 0;
        seen += b.rows;
        forward(&b);
        loss += slopes(&b, &right);
        if (trains)
            backward(&b, rate, plan->proximal);
        fit.steps++;
        fit.seconds = (float)(m->port.now(m->port.context) - began) * 0.001f;
        if (plan->seconds > 0 && fit.steps >= plan->fewest_steps && fit.seconds > plan->seconds)
            break;
    }
    fit.examples = rows;
    if (seen > 0)
        fit.loss = loss / (float)seen;
    if (!trains && model->task != MIDGE_REGRESSION)
        fit.accuracy = (float)right / (float)rows;
    return fit;
}

midge_fit midge_train(midge *m, const midge_model *model, midge_row row, void *context, uint32_t rows, float *work,
                      size_t size)
{
    return pass_rows(m, model, row, context, rows, work, size, &m->target.plan);
}

midge_fit midge_evaluate(midge *m, const midge_model *model, midge_row row, void *context, uint32_t rows, float *work,
                         size_t size)
{
    midge_plan once;
    memset(&once, 0, sizeof once);
    return pass_rows(m, model, row, context, rows, work, size, &once);
}

#endif

/* ================================================================================================== statistics */

void midge_observe(midge_moment *moment, float value)
{
    if (!finite_float(value))
        return;
    double away = (double)value - moment->mean;
    moment->count++;
    moment->mean += away / (double)moment->count;
    moment->m2 += away * ((double)value - moment->mean);
}

/* ======================================================================================================== MQTT */

/* A packet is built in `tx` from FIXED on; its fixed header goes before, once its length is known. What a payload's body
 * is follows from memory, from flash or from the moments. */

#define FIXED 5u

static void drop_link(midge *m)
{
    if (m->link == LINK_DOWN || is_due(m, m->greeted_at + 10000u))
        m->short_lives = 0;
    else if (m->short_lives < 100)
        m->short_lives++;
    m->link = LINK_DOWN;
    m->received = 0;
    m->skipping = 0;
    if (m->work == WORK_FETCH || m->work == WORK_TURN)
        m->work = WORK_NONE;
}

static void send_raw(midge *m, const void *data, size_t size)
{
    if (m->link != LINK_DOWN && !m->port.send(m->port.context, (const uint8_t *)data, size))
        drop_link(m);
    m->said = m->clock;
}

static ONCE writer *begin_packet(midge *m, size_t at)
{
    writer w = {m->tx, MIDGE_TX, at, false};
    m->out = w;
    return &m->out;
}

static ONCE void write_packet_id(midge *m)
{
    m->packet_id = (uint16_t)(m->packet_id + 1u == 0x10000u ? 1u : m->packet_id + 1u);
    write_be(&m->out, m->packet_id, 2);
}

/* Send what is in `out` as a packet, of which a body follows. */
static void send_packet(midge *m, unsigned first, size_t body)
{
    size_t left = m->out.at - FIXED + body;
    uint8_t fixed[FIXED];
    unsigned size = 1;
    if (m->out.full)
        return; /* names that are too long for MIDGE_TX: nothing half-made is sent */
    fixed[0] = (uint8_t)first;
    for (; size == 1 || left > 0; left >>= 7)
        fixed[size++] = (uint8_t)((left & 0x7fu) | (left > 0x7fu ? 0x80u : 0));
    uint8_t *start = m->tx + FIXED - size;
    memcpy(start, fixed, size);
    send_raw(m, start, m->out.at - FIXED + size);
}

/* Text or data with its length before it in two bytes. */
static ONCE size_t begin_string(writer *w)
{
    write_be(w, 0, 2);
    return w->at;
}

static void end_string(writer *w, size_t start)
{
    size_t size = w->at - start;
    if (!w->full) {
        w->data[start - 2] = (uint8_t)(size >> 8);
        w->data[start - 1] = (uint8_t)size;
    }
}

static ONCE void write_plain(writer *w, const char *text)
{
    write_bytes(w, text, strlen(text));
}

static void write_string(writer *w, const char *text)
{
    size_t start = begin_string(w);
    write_plain(w, text);
    end_string(w, start);
}

static void write_decimal(writer *w, uint32_t number)
{
    char digits[11];
    char *at = digits + sizeof digits - 1;
    *at = '\0';
    do
        *--at = (char)('0' + number % 10u);
    while ((number /= 10u) > 0);
    write_plain(w, at);
}

static void write_hex(writer *w, uint32_t number, unsigned digits)
{
    while (digits-- > 0) {
        unsigned digit = number >> (4u * digits) & 15u;
        write_byte(w, digit + (digit < 10 ? '0' : 'a' - 10u));
    }
}

typedef enum place { TO_AGGREGATOR, TO_MODEL, TO_RECEIPT, TO_STATUS, TO_UPDATE, TO_REPORT } place;

static void write_topic_text(midge *m, place where)
{
    static const char *const trees[] = {"/aggregator", "/model/train", "/receipt/", "/status/", "/update/", "/report/"};
    writer *w = &m->out;
    write_plain(w, m->config.root);
    write_byte(w, '/');
    write_plain(w, m->config.federation);
    write_plain(w, trees[where]);
    if (where == TO_UPDATE) {
        write_decimal(w, midge_crc32(0, m->config.device, strlen(m->config.device)) % 64u);
        write_byte(w, '/');
    }
    if (where >= TO_RECEIPT)
        write_plain(w, m->config.device);
}

#define WHOLE UINT32_MAX /* no part of a frame */

/* A topic with its length before it; of a part of the frame that is fetched, with its place behind. */
static void write_topic(midge *m, place where, uint32_t index)
{
    const hop *h = &m->hops[m->hop_at];
    writer *w = &m->out;
    size_t start = begin_string(w);
    write_topic_text(m, where);
    if (index != WHOLE) {
        write_byte(w, '/');
        write_decimal(w, h->version);
        write_byte(w, '/');
        write_decimal(w, h->span);
        write_byte(w, '-');
        write_decimal(w, index);
    }
    end_string(w, start);
}

enum { SUBSCRIBE = 0x82, UNSUBSCRIBE = 0xa2, PASSING = 0x32, RETAINED = 0x33 }; /* first bytes of packets */

/* Subscribe to a topic or leave it. Announcements are retained, and come again: they need no acknowledgement. */
static void list_topic(midge *m, unsigned first, place where, uint32_t index)
{
    writer *w = begin_packet(m, FIXED);
    write_packet_id(m);
    write_topic(m, where, index);
    if (first == SUBSCRIBE)
        write_byte(w, where == TO_MODEL && index == WHOLE ? 0 : 1);
    send_packet(m, first, 0);
}

/* Subscribe to what is missing of the next parts, or leave it. */
static void list_parts(midge *m, unsigned first)
{
    for (uint32_t i = 0; i < WINDOW && m->part + i < m->hops[m->hop_at].parts; i++)
        if (!(m->got >> i & 1u))
            list_topic(m, first, TO_MODEL, m->part + i);
}

/* ================================================================================================ what is sent */

/* How a field of the client's state is said. Those up to SAY_NAME always are, the others unless they are 0. */
enum saying {
    SAY_ALWAYS, SAY_IDENTITY, SAY_BIN16, SAY_DIGEST, SAY_NAME, SAY_INTEGER, SAY_FLOAT, SAY_FALSE, SAY_WIDE, SAY_REAL,
    SAY_WORD, SAY_MACHINE
};

static const field hello_says[] = {{N_STATE, SAY_WORD, offsetof(midge, say.state)},
                                   {N_OUTBOX, SAY_IDENTITY, offsetof(midge, outbox.outbox)},
                                   {N_FIRST, SAY_INTEGER, offsetof(midge, say.first)},
                                   {N_NEXT, SAY_INTEGER, offsetof(midge, say.next)},
                                   {N_WAKES, SAY_REAL, offsetof(midge, say.wakes)},
                                   {N_CAPABILITIES, SAY_MACHINE, offsetof(midge, config.machine)},
                                   {N_WAITS, SAY_WORD, offsetof(midge, say.waits)},
                                   {N_NUMBER, SAY_WIDE, offsetof(midge, say.number)},
                                   {N_TO, SAY_WIDE, offsetof(midge, say.to)},
                                   {N_LARGEST, SAY_INTEGER, offsetof(midge, say.largest)}};
static const field held_says[] = {{N_LINEAGE, SAY_BIN16, offsetof(midge, held.lineage)},
                                  {N_GENERATION, SAY_INTEGER, offsetof(midge, held.generation)},
                                  {N_VERSION, SAY_INTEGER, offsetof(midge, held.version)}};
static const field update_says[] = {{N_OUTBOX, SAY_IDENTITY, offsetof(midge, outbox.outbox)},
                                    {N_FIRST, SAY_ALWAYS, offsetof(midge, say.first)},
                                    {N_SEQ, SAY_ALWAYS, offsetof(midge, outbox.seq)},
                                    {N_LINEAGE, SAY_BIN16, offsetof(midge, outbox.of.lineage)},
                                    {N_GENERATION, SAY_ALWAYS, offsetof(midge, outbox.of.generation)},
                                    {N_BASE, SAY_ALWAYS, offsetof(midge, outbox.of.version)},
                                    {N_CODEC, SAY_NAME, offsetof(midge, outbox.codec)},
                                    {N_SIZE, SAY_ALWAYS, offsetof(midge, outbox.size)},
                                    {N_SHA256, SAY_BIN16, offsetof(midge, outbox.sha256)},
                                    {N_EXAMPLES, SAY_INTEGER, offsetof(midge, outbox.examples)},
                                    {N_STEPS, SAY_INTEGER, offsetof(midge, outbox.steps)},
                                    {N_SECONDS, SAY_FLOAT, offsetof(midge, outbox.seconds)},
                                    {N_PLAN, SAY_INTEGER, offsetof(midge, outbox.revision)},
                                    {N_PARTS, SAY_INTEGER, offsetof(midge, say.parts)},
                                    {N_BASE_DIGEST, SAY_DIGEST, offsetof(midge, outbox.of.digest)},
                                    {N_FEEDBACK, SAY_FALSE, offsetof(midge, outbox.loses)}};
#define CHUNK_SAYS 3u /* so many of them a chunk says too */
static const field target_says[] = {{N_LINEAGE, SAY_BIN16, offsetof(midge, target.of.lineage)}};

static void key(midge *m, unsigned number)
{
    m->pairs++;
    write_byte(&m->out, number);
}

static void key_integer(midge *m, unsigned number, uint32_t value)
{
    key(m, number);
    write_integer(&m->out, value);
}

static void say_fields(midge *m, const field *f, unsigned count)
{
    writer *w = &m->out;
    for (; count > 0; count--, f++) {
        const uint8_t *from = (const uint8_t *)m + f->at;
        uint32_t number;
        uint64_t wide;
        float real;
        const char *word = (const char *)from;
        memcpy(&number, from, sizeof number);
        memcpy(&real, from, sizeof real);
        wide = number;
        if (f->form == SAY_IDENTITY || f->form >= SAY_WIDE)
            memcpy(&wide, from, sizeof wide);
        if (f->form >= SAY_WORD) {
            memcpy(&word, from, sizeof word);
            wide = word != NULL;
        }
        if (wide == 0 && f->form > SAY_NAME)
            continue;
        key(m, f->key);
        switch (f->form) {
        case SAY_BIN16: write_bin(w, from, 16); break;
        case SAY_DIGEST: write_bin(w, from, 8); break;
        case SAY_MACHINE: /* a map in the map */
            write_byte(w, 0x81);
            write_integer(w, N_MACHINE); /* fall through */
        case SAY_NAME:
        case SAY_WORD: write_word(w, word); break;
        case SAY_REAL: write_long(w, 0xcb, wide); break;
        case SAY_FLOAT: write_real(w, (double)real); break;
        case SAY_FALSE: write_byte(w, 0xc2); break;
        default: write_wide(w, wide); break;
        }
    }
}

/* A message's header: its length in two bytes, and a map of which the pairs are counted. */
static ONCE void begin_header(midge *m)
{
    m->header = m->out.at;
    m->pairs = 0;
    write_tagged(&m->out, 0, 0, 2);
}

/* Close it with the message's kind. */
static void end_header(midge *m, unsigned kind)
{
    writer *w = &m->out;
    key_integer(m, N_KIND, kind);
    uint8_t *at = w->data + m->header;
    if (m->pairs > 15) /* then their number takes two bytes more */
        write_be(w, 0, 2);
    if (w->full)
        return;
    at[2] = (uint8_t)(0x80u | m->pairs);
    if (m->pairs > 15) {
        memmove(at + 5, at + 3, w->at - m->header - 5);
        at[2] = 0xde;
        at[3] = 0;
        at[4] = (uint8_t)m->pairs;
    }
    put_le(at, w->at - m->header - 2, 2);
}

static writer *begin_message(midge *m, place where, const field *fields, unsigned count)
{
    begin_packet(m, FIXED);
    write_topic(m, where, WHOLE);
    write_packet_id(m);
    begin_header(m);
    m->say.first = first_held(m);
    say_fields(m, fields, count);
    return &m->out;
}

static void end_message(midge *m, unsigned kind, unsigned first, size_t body)
{
    end_header(m, kind);
    send_packet(m, first, body);
}

/* Bytes of the held update's body, behind its header. */
static void send_stored(midge *m, uint32_t from, uint32_t size)
{
    uint32_t at = body_start(m, m->slot) + from;
    if (m->out.full)
        return;
    for (uint32_t some; size > 0 && m->link != LINK_DOWN; size -= some, at += some) {
        some = least(size, MIDGE_TX);
        if (flash_read(m, at, m->tx, some))
            send_raw(m, m->tx, some);
        else
            drop_link(m); /* the packet cannot be ended in another way */
    }
}

/* Bytes of a body that surely fit the receive buffer, whatever stands before it. */
static uint32_t largest_body(const midge *m)
{
    uint32_t before = (uint32_t)(strlen(m->config.root) + strlen(m->config.federation)) + 152u;
    return m->config.packet > before + 64u ? m->config.packet - before : 64u;
}

static uint32_t unless_1(uint32_t number) /* which is the default */
{
    return number == 1 ? 0 : number;
}

static void say_state(midge *m, const char *state)
{
    bool live = strcmp(state, "ready") == 0;
    m->say.state = state;
    m->say.first = unless_1(first_held(m));
    m->say.next = unless_1(m->outbox.next);
    m->say.waits = live ? m->waits : NULL;
    m->say.largest = live ? largest_body(m) : 0;
    say_fields(m, hello_says, COUNT(hello_says));
    if (m->sound)
        say_fields(m, held_says, COUNT(held_says));
    m->say.wakes = 0;
    m->say.number = m->say.to = 0;
}

/* With what is in `say`: when it wakes, its number, or the number that it answers. */
static void say_hello(midge *m, const char *state, unsigned first)
{
    begin_message(m, TO_STATUS, NULL, 0);
    say_state(m, state);
    end_message(m, N_HELLO, first, 0);
}

/* Answer the device of this name that says this number. */
static void answer(midge *m, uint64_t number)
{
    m->say.to = number;
    say_hello(m, "ready", PASSING);
}

static void ask(midge *m)
{
    m->say.number = m->number;
    say_hello(m, "joining", PASSING);
}

/* The first packet: the Will says that this device is lost. */
static void send_connect(midge *m)
{
    const char *user = m->config.user, *password = user != NULL ? m->config.password : NULL;
    writer *w = begin_packet(m, FIXED);
    write_string(w, "MQTT");
    write_byte(w, 4);
    write_byte(w, 0x2eu | (user != NULL ? 0x80u : 0) | (password != NULL ? 0x40u : 0));
    write_be(w, m->config.keep_alive, 2);
    size_t start = begin_string(w);
    write_plain(w, m->config.device);
    write_byte(w, '-');
    write_hex(w, (uint32_t)(m->outbox.outbox >> 32), 8);
    write_hex(w, (uint32_t)m->outbox.outbox, 8);
    if (m->short_lives >= 3) { /* another client may have this id: come back under another one, and ask */
        write_byte(w, '-');
        write_hex(w, (uint32_t)draw(m), 8);
    }
    end_string(w, start);
    write_topic(m, TO_STATUS, WHOLE);
    start = begin_string(w);
    begin_header(m);
    say_state(m, "lost");
    end_header(m, N_HELLO);
    end_string(w, start);
    if (user != NULL)
        write_string(w, user);
    if (password != NULL)
        write_string(w, password);
    send_packet(m, 0x10, 0);
}

static ONCE bool is_known(float metric)
{
    return metric >= 0;
}

/* Loss and accuracy, as far as they are known. */
static void say_metrics(midge *m, const float *values)
{
    key(m, N_METRICS);
    write_byte(&m->out, 0x80u + is_known(values[0]) + is_known(values[1]));
    for (unsigned i = 0; i < 2; i++)
        if (is_known(values[i])) {
            write_integer(&m->out, N_LOSS + i);
            write_real(&m->out, (double)values[i]);
        }
}

static ONCE uint32_t update_parts(const midge *m)
{
    uint32_t limit = m->target.chunk > 0 ? m->target.chunk : 256u * 1024u, size = m->outbox.size;
    return size <= limit ? 1 : (size + limit - 1u) / limit;
}

/* The held update's header; with its body if it is in one piece. */
static void send_update(midge *m)
{
    uint32_t parts = update_parts(m), body = parts > 1 ? 0 : m->outbox.size;
    m->say.parts = unless_1(parts);
    begin_message(m, TO_UPDATE, update_says, COUNT(update_says));
    if (is_known(m->outbox.metrics[0]) || is_known(m->outbox.metrics[1]))
        say_metrics(m, m->outbox.metrics);
    end_message(m, parts > 1 ? N_OFFER : N_UPDATE, PASSING, body);
    send_stored(m, 0, body);
}

static void send_chunk(midge *m, uint32_t index)
{
    uint32_t parts = update_parts(m), each = (m->outbox.size + parts - 1u) / parts, from = index * each;
    if (index >= parts)
        return;
    uint32_t size = least(m->outbox.size - from, each);
    begin_message(m, TO_UPDATE, update_says, CHUNK_SAYS);
    key_integer(m, N_PART, index);
    end_message(m, N_CHUNK, PASSING, size);
    send_stored(m, from, size);
}

/* Ask for the parts that are missing of those that are waited for. */
static void send_fetch(midge *m)
{
    const hop *h = &m->hops[m->hop_at];
    uint32_t parts[WINDOW], count = 0;
    for (uint32_t i = 0; i < WINDOW && m->part + i < h->parts; i++)
        if (!(m->got >> i & 1u))
            parts[count++] = m->part + i;
    writer *w = begin_message(m, TO_UPDATE, target_says, COUNT(target_says));
    key_integer(m, N_VERSION, h->version);
    key_integer(m, N_SPAN, h->span);
    key(m, N_PARTS);
    write_array(w, count);
    for (uint32_t i = 0; i < count; i++)
        write_integer(w, parts[i]);
    end_message(m, N_FETCH, PASSING, 0);
}

/* Of each statistic its counts, its means, its sums of squares. */
static void send_moments(midge *m)
{
    const midge_moment *first = m->moments;
    size_t filled = 0;
    for (unsigned i = 0; i < m->statistic_count; first += m->statistics[i++].channels)
        for (unsigned which = 0; which < 3; which++)
            for (uint32_t k = 0; k < m->statistics[i].channels; k++) {
                uint64_t bits; /* of one of three numbers of 8 bytes */
                memcpy(&bits, (const uint8_t *)&first[k] + 8 * which, sizeof bits);
                put_le(m->tx + filled, bits, 8);
                filled += 8;
                if (filled + 8 > MIDGE_TX) {
                    send_raw(m, m->tx, filled);
                    filled = 0;
                }
            }
    send_raw(m, m->tx, filled);
}

static ONCE void send_statistics(midge *m)
{
    size_t body = 0;
    writer *w = begin_message(m, TO_UPDATE, target_says, COUNT(target_says));
    key(m, N_NAMES);
    write_array(w, m->statistic_count);
    for (unsigned i = 0; i < m->statistic_count; i++) {
        write_array(w, 2);
        write_word(w, m->statistics[i].name);
        write_integer(w, m->statistics[i].channels);
        body += 24u * (size_t)m->statistics[i].channels;
    }
    end_message(m, N_STATISTICS, PASSING, body);
    if (!w->full)
        send_moments(m);
}

/* ===================================================================================================== fetching */

static ONCE void again_after(midge *m, uint32_t milliseconds)
{
    m->work = WORK_NONE;
    m->newer = true;
    m->newer_at = m->clock + milliseconds;
}

/* Begin with a snapshot. */
static void start_over(midge *m, uint32_t pause)
{
    m->have = m->sound = false;
    again_after(m, pause);
}

static void start_training(midge *m)
{
    for (uint32_t i = 0; i < m->count; i++)
        m->w[i] = published(m, i);
    m->work = WORK_TRAIN;
    m->trained_at = m->clock;
    m->has_trained = true;
}

/* All frames of the way are here: is it the model that was announced? */
static ONCE void arrive(midge *m)
{
    uint8_t digest[16];
    if (m->held.version != m->target.of.version) { /* the way was longer than it could be planned */
        again_after(m, 0);
        return;
    }
    state_digest(m, digest);
    if (memcmp(digest, m->target.of.digest, 16) != 0) {
        start_over(m, 2000);
        return;
    }
    m->sound = true;
    tell(m, MIDGE_MODEL, m->held.version);
    start_training(m);
}

static void next_hop(midge *m)
{
    if (m->hop_at == m->hop_count) {
        arrive(m);
        return;
    }
    m->work = WORK_FETCH;
    m->part = m->got = 0;
    m->tries = 0;
    m->work_at = m->clock + 5000u;
    list_parts(m, SUBSCRIBE);
}

static void give_up_fetch(midge *m, uint32_t pause)
{
    list_parts(m, UNSUBSCRIBE);
    again_after(m, pause);
}

/* A frame is whole: take it in. */
static void take_frame(midge *m)
{
    const hop *h = &m->hops[m->hop_at];
    bool snapshot = h->span == 0;
    uint8_t digest[16];
    frame_header f;
    bytes frame = {m->frame, h->size};
    digest_of(frame.data, frame.size, digest);
    if (memcmp(digest, m->frame_sha, 16) != 0 || !read_frame(frame, &f) || f.kind != (snapshot ? N_SNAPSHOT : N_STEP)) {
        again_after(m, 2000);
        return;
    }
    const char *why = snapshot ? take_snapshot(m, &f) : take_step(m, &f);
    if (why != NULL) {
        if (snapshot)
            tell_why(m, MIDGE_DOES_NOT_FIT, h->version, why);
        start_over(m, snapshot ? 60000 : 2000); /* the integers are spoilt */
        return;
    }
    m->have = true;
    m->held = m->target.of;
    m->held.version = h->version;
    m->hop_at++;
    next_hop(m);
}

static void take_part(midge *m, bytes payload)
{
    part p;
    const hop *h = &m->hops[m->hop_at];
    if (m->work != WORK_FETCH || !read_header(&payload, &part_shape, &p) || p.kind != N_PART ||
        memcmp(p.lineage, m->target.of.lineage, 16) != 0)
        return;
    uint32_t ahead = p.part - m->part, each = (h->size + h->parts - 1u) / h->parts, from = p.part * each;
    p.of.size = h->size;
    if (memcmp(&p.of, h, sizeof *h) != 0 || p.part >= h->parts || ahead >= WINDOW || (m->got >> ahead & 1u))
        return;
    if (from > h->size || payload.size != least(h->size - from, each))
        return;
    if ((m->part | m->got) == 0)
        memcpy(m->frame_sha, p.sha256, 16);
    if (memcmp(p.sha256, m->frame_sha, 16) != 0) {
        give_up_fetch(m, 1000); /* chunks of two frames */
        return;
    }
    memcpy(m->frame + from, payload.data, payload.size);
    list_topic(m, UNSUBSCRIBE, TO_MODEL, p.part);
    m->got |= 1u << ahead;
    m->work_at = m->clock + 5000u;
    for (; (m->got & 1u) != 0; m->got >>= 1, m->part++)
        if (m->part + WINDOW < h->parts)
            list_topic(m, SUBSCRIBE, TO_MODEL, m->part + WINDOW);
    if (m->part >= h->parts)
        take_frame(m);
}

/* No chunk came for 5 s. */
static void hurry_fetch(midge *m)
{
    if (++m->tries > 3 || (m->tries > 1 && m->newer)) {
        give_up_fetch(m, 0); /* that did not help: read the announcement again */
        return;
    }
    m->work_at = m->clock + 5000u;
    send_fetch(m);
}

/* ================================================================================================== the session */

static bool already_trained(const midge *m, const goal *t)
{
    return memcmp(&m->outbox.of, &t->of, sizeof t->of) == 0;
}

/* Whether this device is among those that train from a version. */
static bool takes_part(midge *m, const goal *t)
{
    writer *w = begin_packet(m, 0);
    uint8_t digest[16];
    for (unsigned i = 0; i < 16; i++)
        write_hex(w, t->of.lineage[i], 2);
    write_byte(w, '/');
    write_decimal(w, t->of.generation);
    write_byte(w, '/');
    write_decimal(w, t->of.version);
    write_byte(w, '/');
    write_plain(w, m->config.device);
    digest_of(w->data, w->at, digest);
    return t->share >= 1 || (uint32_t)get_be(digest, 4) < (uint32_t)(t->share * 4294967296.0f);
}

static ONCE uint32_t milliseconds(float seconds)
{
    return (uint32_t)((seconds < MOST_SECONDS ? seconds : MOST_SECONDS) * 1000.0f);
}

/* Milliseconds until a turn: at random within what all devices need at the announced rate. */
static uint32_t turn(midge *m, uint32_t size, uint32_t messages, float share)
{
    const goal *t = &m->target;
    float others = (t->devices > 0 ? (float)t->devices : 20.0f) * share - 1.0f;
    if (t->byte_rate <= 0)
        return 0;
    float seconds = others * ((float)size + 8192.0f * (float)messages) / t->byte_rate;
    if (seconds < 0.1f)
        return 0;
    return (uint32_t)((float)milliseconds(seconds) * (1.0f / 65536.0f) * (float)(draw(m) & 0xffffu));
}

static void adopt_statistics(midge *m, const announcement *a)
{
    if (a->statistic_count == 0 || a->statistic_count > MIDGE_STATISTICS) {
        tell_why(m, MIDGE_DOES_NOT_FIT, a->target.of.version, "too many statistics");
        return;
    }
    bool same = memcmp(m->statistics, a->statistics, sizeof m->statistics) == 0;
    if (!same || m->work != WORK_MEASURE) {
        memcpy(m->statistics, a->statistics, sizeof m->statistics);
        m->statistic_count = (uint8_t)a->statistic_count;
        m->moments = same ? m->moments : NULL;
        m->moments_wait = 10000;
        m->moments_at = m->clock;
    }
    m->work = WORK_MEASURE;
}

/* Begin what an announcement asks for. */
static void adopt(midge *m, const announcement *a)
{
    const goal *t = &a->target;
    bool turning = m->work == WORK_TURN;
    uint32_t due = m->trained_at + milliseconds(t->interval);
    uint32_t bytes_of_way = 0, parts = 0;
    m->newer = false;
    m->target = *t;
    m->work = m->work == WORK_MEASURE && t->statistics ? WORK_MEASURE : WORK_NONE;
    m->after = false;
    if (memcmp(&m->held, &t->of, offsetof(origin, version)) != 0) /* of another lineage, schema or generation */
        m->have = m->sound = false;
    if (m->outbox.seq > 0) { /* one update at a time; read it again then */
        m->newer = m->after = true;
        return;
    }
    if (t->statistics) {
        adopt_statistics(m, a);
        return;
    }
    if (a->phase != N_TRAINING || already_trained(m, t) || !takes_part(m, t))
        return;
    if (m->has_trained && !is_due(m, due)) {
        m->newer = true;
        m->newer_at = due;
        return;
    }
    if (!plan_way(m, a->frames, t->of.version)) {
        tell_why(m, MIDGE_DOES_NOT_FIT, t->of.version, "no frame fits");
        return;
    }
    for (unsigned i = 0; i < m->hop_count; i++) {
        bytes_of_way += m->hops[i].size;
        parts += m->hops[i].parts;
    }
    if (!turning)
        m->work_at = m->clock + turn(m, bytes_of_way + m->outbox.size, 2u * parts + 2u, t->share);
    m->work = WORK_TURN;
}

static uint64_t age(const origin *of) /* within a lineage */
{
    return (uint64_t)of->generation << 32 | of->version;
}

static void take_announcement(midge *m, bytes payload)
{
    announcement a;
    if (!read_announcement(payload, &a) || !same_text(a.federation, m->config.federation))
        return;
    const goal *t = &a.target, *known = &m->target;
    bool same_lineage = memcmp(t->of.lineage, known->of.lineage, 16) == 0;
    if (same_lineage && age(&t->of) < age(&known->of) && t->issued <= known->issued)
        return;
    if (m->work == WORK_FETCH || m->work == WORK_TRAIN) { /* keep the one that is fetched or trained by */
        m->newer = m->newer || memcmp(&t->of, &known->of, sizeof t->of) != 0;
        m->newer_at = m->clock;
        return;
    }
    adopt(m, &a);
}

/* Whether a message is of the aggregator's newest start that is known; 0 is of an earlier version, without tokens. */
static bool is_current(midge *m, uint64_t token)
{
    if (token > m->token)
        m->token = token;
    return token == 0 || token == m->token;
}

/* How long to wait now; the next time twice as long, up to 300 s. */
static ONCE uint32_t later(uint32_t *wait)
{
    uint32_t now = *wait;
    *wait = now >= 150000 ? 300000 : 2 * now;
    return now;
}

static ONCE void greet_soon(midge *m, uint32_t pause)
{
    m->greets = true;
    m->settled_once = false;
    m->greet_wait = 10000;
    m->greet_at = m->clock + pause;
}

static void take_status(midge *m, bytes payload)
{
    aggregator_status s;
    if (!read_header(&payload, &status_shape, &s) || !is_current(m, s.token))
        return;
    bool ready = s.word == N_READY, serves = ready || s.word == N_PAUSED;
    if (serves && (!m->serves || s.boot != m->boot))
        greet_soon(m, m->boot == 0 ? 0 : turn(m, 400, 2, 1));
    if (!serves)
        m->greets = false;
    if (ready && !m->ready)
        m->send_at = m->clock;
    m->serves = serves;
    m->ready = ready;
    m->boot = s.boot;
    m->event.text = text_of(s.state);
    m->event.why = text_of(s.why);
    tell(m, MIDGE_AGGREGATOR, 0);
}

/* The update is settled; the next record that is stored forgets it. */
static ONCE void forget(midge *m)
{
    m->outbox.seq = 0;
    m->send_wait = 10000;
    if (m->after || m->work == WORK_NONE) {
        m->newer = true;
        m->newer_at = m->clock;
    }
    m->after = false;
}

static ONCE void take_verdict(midge *m, const verdict *v)
{
    if (m->outbox.seq == 0 || v->seq != m->outbox.seq || v->text.size == 0)
        return;
    bool final = is_final(v->word);
    if (final && v->body.size > 0 && memcmp(v->body.data, m->outbox.sha256, v->body.size < 8 ? v->body.size : 8) != 0) {
        renew(m, true); /* that verdict was on another body of this number */
        return;
    }
    m->event.text = text_of(v->text);
    m->event.why = text_of(v->why);
    m->event.final = final;
    m->event.accepted = v->word == N_ACCEPTED;
    m->event.repeat = v->repeat;
    tell(m, MIDGE_VERDICT, v->seq);
    if (final)
        forget(m);
    else
        m->send_at = m->clock + milliseconds(v->retry_after > 1 && v->retry_after <= 86400 ? v->retry_after : 1.0f);
    if (v->word == N_FORGOTTEN)
        m->end = MIDGE_FORGOTTEN;
}

static void take_grants(midge *m, list *maps)
{
    permission grant;
    item index;
    while (next_map(maps, &grant_shape, &grant))
        for (list *parts = &grant.parts; parts->count > 0 && !parts->items.bad; parts->count--) {
            next_item(&parts->items, &index);
            if (index.kind == ITEM_INT && grant.seq > 0 && grant.seq == m->outbox.seq && m->link == LINK_UP)
                send_chunk(m, clamped(index.number));
        }
}

static void take_receipt(midge *m, bytes payload)
{
    word_to_us t;
    if (!read_header(&payload, &word_shape, &t))
        return;
    if (t.kind == N_TROUBLE) {
        m->event.why = text_of(t.why);
        tell(m, MIDGE_TROUBLE, 0);
        return;
    }
    if (t.kind != N_RECEIPT || t.outbox != m->outbox.outbox || !is_current(m, t.token))
        return;
    if (t.hi >= m->outbox.next) { /* this outbox is an old copy of itself */
        renew(m, false);
        return;
    }
    bool nothing = t.settled.count == 0 && t.grants.count == 0;
    for (verdict v; m->link != LINK_DOWN && next_map(&t.settled, &verdict_shape, &v);)
        take_verdict(m, &v);
    if (m->link == LINK_DOWN)
        return; /* it has a new identity */
    if (m->outbox.seq > 0 && t.hi >= m->outbox.seq) {
        tell(m, MIDGE_SETTLED, m->outbox.seq);
        forget(m);
    }
    if (t.grants.count > 0) {
        take_grants(m, &t.grants);
        m->send_at = m->clock + m->send_wait;
    }
    if (m->greets || !m->settled_once) {
        if (!m->settled_once)
            tell(m, MIDGE_JOINED, m->outbox.next);
        m->greets = false;
        m->settled_once = true;
        m->send_at = m->clock; /* go back to hi + 1 */
    } else if (nothing && is_due(m, m->sent_at + 1000u))
        m->send_at = m->clock;
}

static void take_hello(midge *m, bytes payload, bool retained)
{
    hello h;
    if (!read_header(&payload, &hello_shape, &h) || h.kind != N_HELLO)
        return;
    bool joining = h.state == N_JOINING, live = h.state == N_READY || h.state == N_TRAINING;
    if (m->link == LINK_JOINING) {
        if (joining && h.number == m->number) {
            if (!m->suspected)
                m->joining_until = m->clock;
        } else if (joining && m->number < h.number)
            answer(m, h.number); /* both begin: the other is to end */
        else if (live && h.to == m->number)
            m->end = MIDGE_TAKEN;
        else if (live && h.outbox != m->outbox.outbox) {
            m->suspected = true;
            if (!retained && m->answered)
                m->end = MIDGE_TAKEN; /* of an earlier version, which answers without a number: twice */
            else if (!retained) {
                m->answered = true;
                ask(m);
            }
        }
        return;
    }
    if (joining && (h.outbox != m->outbox.outbox || h.number != m->number))
        answer(m, h.number);
    else if (h.state == N_LOST && h.outbox == m->outbox.outbox && m->serves)
        greet_soon(m, 0); /* the Will of an earlier connection came late */
}

static void come_in(midge *m)
{
    m->link = LINK_UP;
    m->serves = m->ready = m->greets = m->settled_once = false;
    m->boot = m->token = 0;
    m->send_wait = 10000;
    m->send_at = m->clock;
    for (place where = TO_AGGREGATOR; where <= TO_RECEIPT; where = (place)(where + 1))
        list_topic(m, SUBSCRIBE, where, WHOLE);
}

static void take_connack(midge *m, bytes packet)
{
    if (m->link != LINK_GREETED || packet.size < 2)
        return;
    if (packet.data[1] != 0) {
        m->link = LINK_DOWN;
        if (packet.data[1] == 4 || packet.data[1] == 5)
            m->end = MIDGE_REFUSED;
        return;
    }
    m->link = LINK_JOINING;
    m->greeted_at = m->clock;
    m->suspected = m->short_lives >= 3;
    m->answered = false;
    m->number = (draw(m) >> 2) + 1u;
    m->joining_until = m->clock + 3000u;
    list_topic(m, SUBSCRIBE, TO_STATUS, WHOLE);
    ask(m);
}

static void take_publish(midge *m, bytes packet, unsigned flags, uint32_t cut)
{
    size_t size = packet.size < 2 ? 0 : (size_t)get_be(packet.data, 2), id = flags & 6u ? 2 : 0;
    if (packet.size < 2 + size + id)
        return;
    bytes topic = {packet.data + 2, size}, payload = rest_of(packet, 2 + size + id);
    writer *w = begin_packet(m, FIXED);
    write_bytes(w, topic.data + size, id);
    if (id > 0)
        send_packet(m, 0x40, 0);
    if (payload.size == 0)
        return; /* a retained message was cleared */
    place where = TO_AGGREGATOR;
    for (;; where = (place)(where + 1)) {
        if (where > TO_STATUS)
            return;
        begin_packet(m, 0);
        write_topic_text(m, where);
        if (size >= w->at && memcmp(topic.data, w->data, w->at) == 0)
            break;
    }
    bool below = where == TO_MODEL && size > w->at && topic.data[w->at] == '/';
    if (size > w->at && !below)
        return;
    if (where == TO_AGGREGATOR)
        take_status(m, payload); /* which may be cut short */
    else if (cut > 0) {
        m->event.text = text_of(topic);
        tell(m, MIDGE_TOO_LARGE, cut);
        if (below && m->work == WORK_FETCH)
            give_up_fetch(m, 60000);
    } else if (below)
        take_part(m, payload);
    else if (where == TO_MODEL)
        take_announcement(m, payload);
    else if (where == TO_RECEIPT)
        take_receipt(m, payload);
    else if (where == TO_STATUS)
        take_hello(m, payload, (flags & 1u) != 0);
}

static void take_packet(midge *m, unsigned first, bytes packet, uint32_t cut)
{
    switch (first >> 4) {
    case 2: take_connack(m, packet); break;
    case 3:
        if (m->link > LINK_GREETED)
            take_publish(m, packet, first, cut);
        break;
    default: break; /* acknowledgements of ours mean nothing */
    }
}

static bool goes_on(const midge *m)
{
    return m->link != LINK_DOWN && m->end == MIDGE_IDLE;
}

static ONCE void forget_received(midge *m, uint32_t size)
{
    m->received -= size;
    memmove(m->rx, m->rx + size, m->received);
}

/* The next packet in the receive buffer. False if it is not there as a whole, or as much of it as fits. */
static ONCE bool next_packet_in(midge *m)
{
    bytes received = {m->rx, m->received}, rest = rest_of(received, 1);
    uint64_t size;
    bool known = next_leb128(&rest, &size);
    if (known ? size >= 1u << 28 : m->received > 4) { /* no length has five bytes */
        drop_link(m);
        return false;
    }
    uint32_t header = m->received - (uint32_t)rest.size, whole = header + (uint32_t)size,
             here = least(whole, m->config.packet);
    if (!known || m->received < here)
        return false;
    rest.size = here - header;
    take_packet(m, m->rx[0], rest, whole > here ? whole : 0);
    if (m->link == LINK_DOWN)
        return false;
    m->skipping = whole - here;
    forget_received(m, here);
    return true;
}

static void take_in(midge *m)
{
    int got = 1;
    for (unsigned rounds = 0; rounds < 16 && got > 0 && goes_on(m); rounds++) {
        uint32_t room = m->config.packet - m->received;
        got = m->port.receive(m->port.context, m->rx + m->received, room);
        if (got < 0 || (uint32_t)got > room) {
            drop_link(m);
            return;
        }
        if (got > 0)
            m->heard = m->clock;
        m->received += (uint32_t)got;
        uint32_t some = least((uint32_t)m->skipping, m->received);
        m->skipping -= some;
        forget_received(m, some);
        while (m->skipping == 0 && m->received > 0 && next_packet_in(m) && goes_on(m))
            continue;
    }
}

static void keep_alive(midge *m)
{
    static const uint8_t ping[2] = {0xc0, 0};
    uint32_t span = (uint32_t)m->config.keep_alive * 1000u;
    if (is_due(m, m->heard + span + span / 2u) || (m->link == LINK_GREETED && is_due(m, m->heard + 10000u)))
        drop_link(m);
    else if (is_due(m, m->said + span / 2u))
        send_raw(m, ping, sizeof ping);
}

static void send_held(midge *m)
{
    uint32_t wait = later(&m->send_wait);
    send_update(m);
    m->sent_at = m->clock;
    m->send_at = m->clock + wait - wait / 4u + (uint32_t)draw(m) % (wait / 2u + 1u);
}

/* What is due while the link is up. */
static void attend(midge *m)
{
    bool knows_chunk = m->target.chunk > 0 || is_due(m, m->greeted_at + 5000u);
    if (m->greets && m->serves && is_due(m, m->greet_at)) {
        say_hello(m, "ready", RETAINED);
        m->greet_at = m->clock + later(&m->greet_wait);
    }
    if (m->outbox.seq > 0 && m->settled_once && m->ready && knows_chunk && is_due(m, m->send_at))
        send_held(m);
    if (m->work == WORK_FETCH && is_due(m, m->work_at))
        hurry_fetch(m);
    if (m->work == WORK_TURN && m->ready && m->settled_once && is_due(m, m->work_at))
        next_hop(m);
    if (m->work == WORK_MEASURE && m->moments != NULL && m->ready && is_due(m, m->moments_at)) {
        send_statistics(m);
        m->moments_at = m->clock + later(&m->moments_wait);
    }
    if (m->newer && !m->after && m->outbox.seq == 0 && m->work == WORK_NONE && is_due(m, m->newer_at)) {
        m->newer_at = m->clock + 5000u; /* the retained announcement comes again */
        list_topic(m, SUBSCRIBE, TO_MODEL, WHOLE);
    }
}

/* ================================================================================================ the interface */

static size_t length(const char *text)
{
    return text == NULL ? 0 : strlen(text);
}

static bool good_name(const char *text)
{
    size_t size = length(text);
    if (size < 1 || size > 64)
        return false;
    for (size_t i = 0; i < size; i++) {
        unsigned c = (unsigned char)text[i];
        bool plain = (c | 32u) - 'a' < 26 || c - '0' < 10;
        if (!plain && (i == 0 || (c != '.' && c != '_' && c != '-')))
            return false;
    }
    return true;
}

static bool good_configuration(const midge_config *c)
{
    return good_name(c->federation) && good_name(c->device) && c->packet >= 700 && c->parameters > 0 &&
           c->parameters < 1u << 22 && c->frozen < 1u << 22 && c->packet < 1u << 22 && c->slot % 16u == 0 &&
           c->slot > MIDGE_META && length(c->root) <= 64 && length(c->machine) <= 64;
}

static void tick(midge *m)
{
    uint32_t now = m->port.now(m->port.context);
    m->clock += (uint32_t)(now - m->last_now);
    m->last_now = now;
}

midge *midge_begin(void *arena, size_t size, const midge_config *config, const midge_port *port)
{
    uint8_t *at = (uint8_t *)arena;
    if (!good_configuration(config) || ((uintptr_t)at & 7u) != 0 ||
        size < MIDGE_ARENA(config->parameters, config->frozen, config->packet))
        return NULL;
    midge *m = (midge *)arena;
    memset(m, 0, sizeof *m);
    m->config = *config;
    m->port = *port;
    if (m->config.root == NULL)
        m->config.root = "midge/1";
    if (m->config.keep_alive == 0)
        m->config.keep_alive = 60;
    at += MIDGE_SELF;
    m->scratch = (uint32_t *)(void *)at;
    at += MIDGE_SCRATCH;
    m->n = (int32_t *)(void *)at;
    at += 4u * (size_t)config->parameters;
    m->w = (float *)(void *)at;
    m->frame = at;
    m->frame_room = 4u * config->parameters + MIDGE_FRAME_EXTRA;
    at += m->frame_room;
    m->rx = at;
    at += config->packet;
    m->tx = at;
    at += MIDGE_TX;
    m->frozen = at;
    m->sound = false;
    m->last_now = port->now(port->context);
    return begin_outbox(m) ? m : NULL;
}

void midge_connect(midge *m)
{
    tick(m);
    if (m->end == MIDGE_REFUSED)
        m->end = MIDGE_IDLE;
    if (m->end != MIDGE_IDLE)
        return;
    m->received = 0;
    m->skipping = 0;
    m->link = LINK_GREETED;
    m->heard = m->greeted_at = m->clock;
    send_connect(m);
}

midge_status midge_poll(midge *m)
{
    tick(m);
    take_in(m);
    if (goes_on(m))
        keep_alive(m);
    if (goes_on(m) && m->link == LINK_JOINING && is_due(m, m->joining_until))
        come_in(m);
    if (goes_on(m) && m->link == LINK_UP)
        attend(m);
    if (m->end != MIDGE_IDLE)
        return m->end;
    if (m->link == LINK_DOWN)
        return MIDGE_DOWN;
    if (m->work == WORK_MEASURE && m->moments == NULL)
        return MIDGE_MEASURE;
    return m->work == WORK_TRAIN ? MIDGE_TRAIN : MIDGE_IDLE;
}

void midge_leave(midge *m, double wakes)
{
    static const uint8_t bye[2] = {0xe0, 0};
    tick(m);
    if (m->link == LINK_UP) {
        m->say.wakes = wakes > 0 ? wakes : 0;
        say_hello(m, wakes > 0 ? "sleeping" : "disconnected", RETAINED);
    }
    if (m->link != LINK_DOWN)
        send_raw(m, bye, sizeof bye);
    m->link = LINK_DOWN;
}

void midge_wait(midge *m, const char *why)
{
    if (length(why) > 100)
        return;
    m->waits = why;
    if (m->link == LINK_UP && m->settled_once)
        say_hello(m, "ready", RETAINED);
}

const midge_plan *midge_get_plan(const midge *m)
{
    return &m->target.plan;
}

uint32_t midge_version(const midge *m)
{
    return m->held.version;
}

uint32_t midge_next(const midge *m)
{
    return m->outbox.next;
}

bool midge_holding(const midge *m)
{
    return m->outbox.seq > 0;
}

uint64_t midge_outbox(const midge *m)
{
    return m->outbox.outbox;
}

float *midge_weights(midge *m, uint32_t *count)
{
    *count = m->work == WORK_TRAIN ? m->count : 0;
    return m->work == WORK_TRAIN ? m->w : NULL;
}

bool midge_find(const midge *m, const char *name, uint32_t *at, uint32_t *size)
{
    const tensor *t = find_tensor(m, name);
    if (t == NULL || (t->role != TRAINED && t->role != AVERAGED))
        return false;
    *at = t->at;
    *size = t->size;
    return true;
}

float midge_frozen(const midge *m, const char *name, uint32_t index, float otherwise)
{
    uint32_t count;
    const uint8_t *floats = frozen_floats(m, name, &count);
    return index < count ? float_at(floats, index) : otherwise;
}

void midge_skip(midge *m)
{
    if (m->work != WORK_TRAIN)
        return;
    m->outbox.of = m->target.of; /* until the next start, this counts as trained from */
    again_after(m, 0);
}

midge_result midge_submit(midge *m, const midge_fit *fit)
{
    if (m->work != WORK_TRAIN)
        return MIDGE_NOT_NOW;
    midge_result result = store(m, fit);
    if (result == MIDGE_NOT_FINITE)
        midge_skip(m);
    else
        again_after(m, result == MIDGE_DONE ? 0 : 5000);
    if (result != MIDGE_DONE)
        return result;
    m->send_at = m->clock;
    m->send_wait = 10000;
    tell(m, MIDGE_STORED, m->outbox.seq);
    return MIDGE_DONE;
}

void midge_report(midge *m, const midge_fit *fit)
{
    float metrics[2];
    if (m->link != LINK_UP || !m->sound)
        return;
    begin_message(m, TO_REPORT, held_says, 1);
    key_integer(m, N_VERSION, m->held.version);
    key_integer(m, N_EXAMPLES, fit->examples);
    take_metrics(fit, metrics);
    say_metrics(m, metrics);
    end_message(m, N_REPORT, PASSING, 0);
}

bool midge_measures(const midge *m, unsigned index, midge_text *name, uint32_t *channels)
{
    if (m->work != WORK_MEASURE || index >= m->statistic_count)
        return false;
    *name = text_of(bytes_of(m->statistics[index].name));
    *channels = m->statistics[index].channels;
    return true;
}

void midge_give(midge *m, const midge_moment *moments, uint32_t count)
{
    uint64_t wanted = 0;
    for (unsigned i = 0; i < m->statistic_count; i++)
        wanted += m->statistics[i].channels;
    if (m->work != WORK_MEASURE || wanted != count)
        return;
    m->moments = moments;
    m->moments_at = m->clock;
}
