/* A device that learns: which of four sums of its twelve inputs is the largest. Ends after UPDATES updates, and prints how
 * good each model was on its rows before it trained.
 *
 *   learner HOST PORT FEDERATION NUMBER UPDATES FLASH
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../iot_client/c/ports/posix.h"

#define PARAMETERS 400
#define INPUTS 12u
#define ROWS 200u

static uint64_t arena[MIDGE_ARENA(PARAMETERS, 128, 1280) / 8 + 1];
static float rows[ROWS][INPUTS], labels[ROWS];
static float work[MIDGE_WORK(INPUTS, 16, 4, 8)];
static midge_moment moments[INPUTS];

static void take_rows(uint32_t seed)
{
    for (uint32_t r = 0; r < ROWS; r++) {
        float sums[4] = {0, 0, 0, 0};
        uint32_t best = 0;
        for (uint32_t i = 0; i < INPUTS; i++) {
            seed = seed * 1664525u + 1013904223u;
            float value = (float)(seed >> 8) / 8388608.0f - 1.0f;
            sums[i % 4] += value;
            rows[r][i] = 10.0f + 5.0f * value;
            midge_observe(&moments[i], rows[r][i]);
        }
        for (uint32_t i = 1; i < 4; i++)
            if (sums[i] > sums[best])
                best = i;
        labels[r] = (float)best;
    }
}

static void give_row(void *context, uint32_t index, float *inputs, float *target)
{
    (void)context;
    memcpy(inputs, rows[index], sizeof rows[index]);
    *target = labels[index];
}

static void hear(void *context, const midge_event *e)
{
    (void)context;
    if (e->tiding == MIDGE_VERDICT || e->tiding == MIDGE_TROUBLE || e->tiding == MIDGE_DOES_NOT_FIT)
        fprintf(stderr, "{\"event\": %d, \"number\": %u, \"text\": \"%.*s\", \"why\": \"%.*s\"}\n", (int)e->tiding,
                (unsigned)e->number, (int)e->text.size, e->text.size > 0 ? e->text.data : "", (int)e->why.size,
                e->why.size > 0 ? e->why.data : "");
}

int main(int count, char **words)
{
    if (count != 7)
        return 2;
    char name[32];
    midge_posix board;
    midge_model model;
    unsigned updates = (unsigned)strtoul(words[5], NULL, 10);
    midge_config config = {.federation = words[3], .device = name, .parameters = PARAMETERS, .frozen = 128,
                           .packet = 1280, .slot = 4096, .feedback = true, .event = hear};
    (void)snprintf(name, sizeof name, "learner-%s", words[4]);
    take_rows((uint32_t)strtoul(words[4], NULL, 10) * 7919u + 1u);
    if (!midge_posix_open(&board, words[6], 2 * config.slot, config.entropy))
        return 3;
    midge_port port = midge_posix_port(&board);
    midge *m = midge_begin(arena, sizeof arena, &config, &port);
    while (m != NULL) {
        switch (midge_poll(m)) {
        case MIDGE_DOWN:
        case MIDGE_REFUSED:
            midge_posix_sleep(20);
            if (midge_posix_link(&board, words[1], words[2]))
                midge_connect(m);
            break;
        case MIDGE_MEASURE: midge_give(m, moments, INPUTS); break;
        case MIDGE_TRAIN: {
            if (!midge_model_of(m, MIDGE_CLASSIFICATION, &model))
                return 5;
            midge_fit found = midge_evaluate(m, &model, give_row, NULL, ROWS, work, sizeof work / sizeof work[0]);
            printf("{\"version\": %u, \"loss\": %g, \"accuracy\": %g}\n", midge_version(m), (double)found.loss,
                   (double)found.accuracy);
            fflush(stdout);
            midge_report(m, &found);
            midge_fit fit = midge_train(m, &model, give_row, NULL, ROWS, work, sizeof work / sizeof work[0]);
            if (midge_submit(m, &fit) != MIDGE_DONE)
                return 6;
            break;
        }
        case MIDGE_IDLE:
            if (midge_next(m) > updates && !midge_holding(m)) {
                midge_leave(m, 0);
                return 0;
            }
            midge_posix_sleep(1);
            break;
        default: return 7;
        }
    }
    return 4;
}
