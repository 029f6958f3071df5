/* The core on a fixed problem: a model comes as a snapshot, is trained, and its updates are encoded. What comes out is
 * printed as SHA-256, which must be the same on every processor. The snapshot is that of `core.h`, made by the test.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "../../iot_client/c/midge.c"

#include "core.h"

void say_line(const char *text); /* of the host or of the board */

#define PARAMETERS 600
#define ROWS 60u
#define INPUTS 12u
#define SLOT 8192u

static uint64_t arena[MIDGE_ARENA(PARAMETERS, 128, 1280) / 8 + 1];
static uint8_t flash[2 * SLOT];
static float work[MIDGE_WORK(INPUTS, 16, 4, 8)];

#include "silent_port.h"

static bool write_flash(void *context, uint32_t at, const void *data, size_t size)
{
    (void)context;
    memcpy(flash + at, data, size);
    return true;
}

/* Three classes: which of three sums of inputs is largest. */
static void row(void *context, uint32_t index, float *inputs, float *target)
{
    float sums[4] = {0, 0, 0, 0};
    uint32_t best = 0, at = index * 2654435761u + 12345u;
    (void)context;
    for (uint32_t i = 0; i < INPUTS; i++) {
        at = at * 1664525u + 1013904223u;
        inputs[i] = (float)(at >> 8) / 8388608.0f - 1.0f;
        sums[i % 4] += inputs[i];
    }
    for (uint32_t i = 1; i < 4; i++)
        if (sums[i] > sums[best])
            best = i;
    *target = (float)best;
}

static void say_digest(const char *word, const void *data, size_t size)
{
    midge_sha256 sha;
    uint8_t digest[32];
    char text[80];
    writer w = {(uint8_t *)text, sizeof text, 0, false};
    midge_sha256_begin(&sha);
    midge_sha256_add(&sha, data, size);
    midge_sha256_end(&sha, digest);
    write_plain(&w, word);
    write_plain(&w, " ");
    for (unsigned i = 0; i < 16; i++)
        write_hex(&w, digest[i], 2);
    write_bytes(&w, "", 1);
    say_line(text);
}

static bool update(midge *m, const char *name)
{
    midge_model model;
    if (!midge_model_of(m, MIDGE_CLASSIFICATION, &model) || model.hidden != 16 || model.inputs != INPUTS)
        return false;
    m->draws = 0; /* rows in the same order, whatever was drawn before */
    start_training(m);
    memset(m->target.plan.codec, 0, sizeof m->target.plan.codec);
    memcpy(m->target.plan.codec, name, strlen(name));
    midge_fit fit = midge_train(m, &model, row, NULL, ROWS, work, sizeof work / sizeof work[0]);
    say_digest("weights", m->w, sizeof *m->w * m->count);
    say_digest("loss", &fit.loss, sizeof fit.loss);
    fit.seconds = 0;
    if (midge_submit(m, &fit) != MIDGE_DONE)
        return false;
    uint32_t size = aligned16(m->outbox.size) + 2 * m->outbox.left;
    say_digest(name, flash + slot_start(m, m->slot) + MIDGE_META, size);
    return true;
}

int run_core(void);
int run_core(void)
{
    midge_config config = {.federation = "f", .device = "d", .parameters = PARAMETERS, .frozen = 128, .packet = 1280,
                           .slot = SLOT, .feedback = true, .entropy = {1, 2, 3}};
    midge_port port = {NULL, send_nothing, receive_nothing, no_time, read_flash, write_flash};
    bytes snapshot = {core_snapshot, sizeof core_snapshot};
    frame_header f;
    uint8_t digest[32];
    midge *m = midge_begin(arena, sizeof arena, &config, &port);
    if (m == NULL || !read_frame(snapshot, &f) || take_snapshot(m, &f) != NULL)
        return 1;
    state_digest(m, digest);
    say_digest("state", digest, 16);
    m->target.plan.feedback = true;
    m->target.plan.epochs = 3;
    m->target.plan.learning_rate = 0.1f;
    m->target.plan.proximal = 0.01f;
    for (unsigned i = 0; i < 2; i++) /* the second with what the first has left */
        if (!update(m, "uq:4|rice"))
            return 2;
    return update(m, "int8:256") ? 0 : 3;
}
