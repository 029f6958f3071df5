/* Midge for microcontrollers: a device of a federation over MQTT 3.1.1, in C99, without malloc.
 *
 * One header, one source. The caller gives all memory in one arena, opens the link, trains, and calls `midge_poll`.
 * Transport and flash are five functions. See README.md beside this file; the wire is docs/protocol.md.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef MIDGE_H
#define MIDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------------- limits
 * Each may be set on the compiler's command line, for midge.c and for all that includes this header alike. */

#ifndef MIDGE_TENSORS
#define MIDGE_TENSORS 12 /* tensors of a model's schema, frozen ones included */
#endif
#ifndef MIDGE_TX
#define MIDGE_TX 640 /* bytes of the largest packet that is sent, without its body; 600 or more */
#endif
#ifndef MIDGE_FRAME_EXTRA
#define MIDGE_FRAME_EXTRA 1024 /* bytes of a snapshot beside 4 a parameter: its header, schema and frozen tensors */
#endif
#ifndef MIDGE_STATISTICS
#define MIDGE_STATISTICS 3 /* named statistics that an aggregator may ask for */
#endif
#ifndef MIDGE_HOPS
#define MIDGE_HOPS 6 /* frames on the way from one version to another that are planned at a time */
#endif
#ifndef MIDGE_UNIFORM
#define MIDGE_UNIFORM 1 /* the codec uq:k|rice and error feedback; without it, what asks for uq is answered in int8:256 */
#endif
#ifndef MIDGE_TRAINING
#define MIDGE_TRAINING 1 /* midge_train and midge_evaluate; without it, the firmware trains in its own way */
#endif

#define MIDGE_SELF 1600    /* bytes of the client itself */
#define MIDGE_SCRATCH 1536 /* bytes for planning a way and for encoding; never both */
#define MIDGE_META 208     /* bytes of an outbox record before the body */

/* Bytes of the arena. `parameters` and `frozen` (bytes of frozen tensors) are the most that a model may have; `packet`
 * is the largest MQTT packet that can be received: 1,280 is a good value, 700 the least. */
#define MIDGE_ARENA(parameters, frozen, packet)                                                                    \
    (MIDGE_SELF + MIDGE_SCRATCH + MIDGE_TX + MIDGE_FRAME_EXTRA + 8u * (size_t)(parameters) + (size_t)(frozen) +     \
     (size_t)(packet) + 40u)

/* Bytes of one of the two slots in flash, to be rounded up to whole sectors. Without error feedback a third less. */
#define MIDGE_SLOT(parameters, feedback) \
    (MIDGE_META + 4u * (size_t)(parameters) + 64u + ((feedback) ? 2u * (size_t)(parameters) + 16u : 0u))

/* --------------------------------------------------------------------------------------------------------- port */

/* The board: five functions. `context` is handed to each. */
typedef struct midge_port {
    void *context;
    /* Send all bytes, waiting as long as it must. False if the link is down. */
    bool (*send)(void *context, const uint8_t *data, size_t size);
    /* Read what is there without waiting: how many bytes, 0 for none, below 0 if the link is down. */
    int (*receive)(void *context, uint8_t *data, size_t size);
    /* Milliseconds from any beginning; it may wrap around. */
    uint32_t (*now)(void *context);
    /* Read from the outbox's area of flash; `at` counts from its beginning. */
    bool (*flash_read)(void *context, uint32_t at, void *data, size_t size);
    /* Write, durable when it returns. A slot is written from its beginning to its end, in multiples of 16 bytes. Flash
     * that must be erased: erase each sector whose first byte is among those written, and then write. */
    bool (*flash_write)(void *context, uint32_t at, const void *data, size_t size);
} midge_port;

/* ------------------------------------------------------------------------------------------------ configuration */

/* Text that is not closed by a zero. */
typedef struct midge_text {
    const char *data;
    size_t size;
} midge_text;

typedef enum midge_tiding {
    MIDGE_JOINED,         /* greeted; `number` is the next seq */
    MIDGE_VERDICT,        /* on update `number`: `text` is the verdict, `why` for people, `final` if it is settled */
    MIDGE_SETTLED,        /* update `number` is settled by a receipt whose verdict was lost */
    MIDGE_STORED,         /* update `number` is in the outbox */
    MIDGE_MODEL,          /* version `number` of the model is here, checked by its digest */
    MIDGE_TROUBLE,        /* the aggregator dropped something of this device: `why` */
    MIDGE_TOO_LARGE,      /* a packet of `number` bytes was passed over: give a larger `packet` */
    MIDGE_DOES_NOT_FIT,   /* the model cannot be held here: `why` */
    MIDGE_RENEWED,        /* the outbox was an old copy of itself, and has a new identity */
    MIDGE_AGGREGATOR      /* its state is `text`; `why` may say what stands in the way */
} midge_tiding;

typedef struct midge_event {
    midge_tiding tiding;
    uint64_t number;
    bool final, accepted, repeat;
    midge_text text, why;
} midge_event;

typedef struct midge_config {
    const char *federation; /* names: 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit */
    const char *device;
    const char *root;               /* of the topics; NULL is "midge/1" */
    const char *user, *password;    /* NULL: none */
    const char *machine;            /* what board it is, for people; NULL: not said */
    uint16_t keep_alive;            /* seconds; 0 is 60 */
    uint32_t parameters;            /* shared values that a model may have */
    uint32_t frozen;                /* bytes of frozen tensors that it may have */
    uint32_t packet;                /* bytes of the largest MQTT packet */
    uint32_t slot;                  /* bytes of one of two slots in flash, from MIDGE_SLOT up to whole sectors */
    bool feedback;                  /* whether a slot has room for what a coarse codec leaves out */
    uint8_t entropy[16];            /* random bits of the board, other ones at each start */
    void (*event)(void *context, const midge_event *event); /* may be NULL */
    void *context;                  /* of `event` */
} midge_config;

/* ------------------------------------------------------------------------------------------------------- client */

typedef struct midge midge;

typedef enum midge_status {
    MIDGE_IDLE,    /* nothing to do now: sleep some milliseconds, then poll again */
    MIDGE_TRAIN,   /* train `midge_weights`, then `midge_submit` or `midge_skip`; poll meanwhile if it takes seconds */
    MIDGE_MEASURE, /* the aggregator asks for statistics: `midge_measures`, then `midge_give` */
    MIDGE_DOWN,    /* open a link to the broker, then `midge_connect` */
    MIDGE_REFUSED, /* the broker refuses user or password: connect again later */
    MIDGE_TAKEN,   /* another live device has this name: end */
    MIDGE_FORGOTTEN /* the operator withdrew this device: end */
} midge_status;

/* Begin in an arena of `size` bytes, aligned as for uint64_t, which must stay. Reads the outbox, or makes one. NULL if
 * the arena is too small, a name is wrong, or flash fails. */
midge *midge_begin(void *arena, size_t size, const midge_config *config, const midge_port *port);

/* The link is open: greet the broker. */
void midge_connect(midge *m);

/* Take in what came, and do what is due. */
midge_status midge_poll(midge *m);

/* Leave in order; `wakes` is 0, or the seconds since 1970 at which this device will be back. Then close the link. */
void midge_leave(midge *m, double wakes);

/* Say why this device will not train for half a minute or more. NULL: it will. The text must stay. */
void midge_wait(midge *m, const char *why);

/* ----------------------------------------------------------------------------------------------------- training */

/* What the aggregator's plan asks for; 0 leaves it to the device. */
typedef struct midge_plan {
    char codec[24], micro_codec[24]; /* the second is for devices that keep no error feedback */
    float learning_rate, proximal, seconds;
    uint32_t revision, local_steps, epochs, batch_size, fewest_steps, most_steps;
    bool feedback, micro;
} midge_plan;

/* What was done, for the aggregator and for people. */
typedef struct midge_fit {
    uint32_t examples, steps;
    float seconds, loss, accuracy; /* the last two are left out if below 0 or not finite */
} midge_fit;

typedef enum midge_result {
    MIDGE_DONE,
    MIDGE_NOT_NOW,    /* nothing is being trained */
    MIDGE_NOT_FINITE, /* the training diverged: nothing is stored */
    MIDGE_NO_FLASH    /* it could not be stored; it may be submitted again after it was trained again */
} midge_result;

const midge_plan *midge_get_plan(const midge *m);
uint32_t midge_version(const midge *m);
uint32_t midge_next(const midge *m); /* the seq that the next update gets */
bool midge_holding(const midge *m);  /* whether an update waits for its receipt */
uint64_t midge_outbox(const midge *m);

/* The shared parameters, to be trained in place; their number in `count`. NULL unless the status is MIDGE_TRAIN. */
float *midge_weights(midge *m, uint32_t *count);

/* A tensor by its name: the place of its first value in the shared vector and its size. False if there is none. */
bool midge_find(const midge *m, const char *name, uint32_t *at, uint32_t *size);

/* A frozen float32 tensor by its name, value `index`; `otherwise` if it is not there. */
float midge_frozen(const midge *m, const char *name, uint32_t index, float otherwise);

/* Encode the weights, store the update, send it. The weights are gone afterwards. */
midge_result midge_submit(midge *m, const midge_fit *fit);

/* Do not train from this version. */
void midge_skip(midge *m);

/* Tell how good the model of this version is on this device's own rows. */
void midge_report(midge *m, const midge_fit *fit);

#if MIDGE_TRAINING
/* ------------------------------------------------------------------------------------------------------- models */

typedef enum midge_task { MIDGE_CLASSIFICATION, MIDGE_BINARY, MIDGE_REGRESSION } midge_task;

/* A perceptron with ReLU; without hidden units it is linear. The names of its tensors are those of Midge's models:
 * layers.0.weight, layers.0.bias, layers.2.weight, layers.2.bias, and frozen input_mean, input_scale, target_mean,
 * target_scale. */
typedef struct midge_model {
    midge_task task;
    uint32_t inputs, hidden, outputs;
    uint32_t weight[2], bias[2]; /* their places in the shared vector */
} midge_model;

/* Rows: give row `index`, its `inputs` values and its target, a label or a number. */
typedef void (*midge_row)(void *context, uint32_t index, float *inputs, float *target);

/* Floats that training takes beside the model, for a batch. */
#define MIDGE_WORK(inputs, hidden, outputs, batch) \
    ((size_t)(batch) * ((size_t)(inputs) + 2u * (size_t)(hidden) + (size_t)(outputs) + 1u))

/* The model that the federation's tensors make; false if they make none of that task. */
bool midge_model_of(const midge *m, midge_task task, midge_model *model);

/* Mini-batch descent over `rows` rows, as the plan says or, where it says nothing, one epoch at 0.05 in batches of 8.
 * `work` has `size` floats; a batch is made as small as they require. */
midge_fit midge_train(midge *m, const midge_model *model, midge_row row, void *context, uint32_t rows, float *work,
                      size_t size);

/* Mean loss and accuracy over rows, of `midge_weights`. */
midge_fit midge_evaluate(midge *m, const midge_model *model, midge_row row, void *context, uint32_t rows, float *work,
                         size_t size);

#endif
/* --------------------------------------------------------------------------------------------------- statistics */

/* Count, mean and sum of squared deviations of one channel (Welford, 1962). */
typedef struct midge_moment {
    int64_t count;
    double mean, m2;
} midge_moment;

void midge_observe(midge_moment *moment, float value); /* what is not finite is missing */

/* The statistic `index` that is asked for: its name and how many channels. False if there are no more. */
bool midge_measures(const midge *m, unsigned index, midge_text *name, uint32_t *channels);

/* The moments of all statistics, one after the other, in their order; they must stay. */
void midge_give(midge *m, const midge_moment *moments, uint32_t count);

/* ------------------------------------------------------------------------------------------------------- checks */

uint32_t midge_crc32(uint32_t crc, const void *data, size_t size); /* as zlib's; begin with 0 */

typedef struct midge_sha256 {
    uint32_t state[8];
    uint64_t length;
    uint8_t block[64];
} midge_sha256;

void midge_sha256_begin(midge_sha256 *sha);
void midge_sha256_add(midge_sha256 *sha, const void *data, size_t size);
void midge_sha256_end(midge_sha256 *sha, uint8_t digest[32]);

#ifdef __cplusplus
}
#endif
#endif
