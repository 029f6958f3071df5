/* A device of a federation on ESP-IDF, over TLS: linear regression of a reading from eight others. Connecting to the
 * network is left to your firmware; `take_rows` stands for its sensors.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>

#include "esp_log.h"
#include "esp_partition.h"
#include "esp_random.h"
#include "esp_timer.h"
#include "esp_tls.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"
#include "midge.h"

#define BROKER "broker.example.org"
#define PARAMETERS 64
#define INPUTS 8
#define ROWS 128
#define SECTOR 4096u

static const char TAG[] = "midge";
static const char AUTHORITY[] = "-----BEGIN CERTIFICATE-----\n...\n-----END CERTIFICATE-----\n";

static uint64_t arena[MIDGE_ARENA(PARAMETERS, 128, 1280) / 8 + 1];
static float work[MIDGE_WORK(INPUTS, 0, 1, 8)];
static float rows[ROWS][INPUTS], targets[ROWS];
static midge_moment moments[INPUTS + 1]; /* of the inputs, then of the target */
static const esp_partition_t *partition;
static esp_tls_t *tls;

static bool send_all(void *context, const uint8_t *data, size_t size)
{
    (void)context;
    while (size > 0) {
        ssize_t sent = esp_tls_conn_write(tls, data, size);
        if (sent < 0 && sent != ESP_TLS_ERR_SSL_WANT_WRITE && sent != ESP_TLS_ERR_SSL_WANT_READ)
            return false;
        if (sent > 0) {
            data += sent;
            size -= (size_t)sent;
        }
    }
    return true;
}

/* Whether bytes wait: in the TLS session, or on the socket. */
static bool is_waiting(void)
{
    int socket = -1;
    fd_set set;
    struct timeval none = {0, 0};
    if (esp_tls_get_bytes_avail(tls) > 0)
        return true;
    if (esp_tls_get_conn_sockfd(tls, &socket) != ESP_OK)
        return false;
    FD_ZERO(&set);
    FD_SET(socket, &set);
    return select(socket + 1, &set, NULL, NULL, &none) > 0;
}

static int receive_some(void *context, uint8_t *data, size_t size)
{
    (void)context;
    if (size == 0 || !is_waiting())
        return 0;
    ssize_t got = esp_tls_conn_read(tls, data, size);
    if (got == ESP_TLS_ERR_SSL_WANT_READ || got == ESP_TLS_ERR_SSL_WANT_WRITE)
        return 0;
    return got > 0 ? (int)got : -1; /* 0 is the end of the link */
}

static uint32_t milliseconds(void *context)
{
    (void)context;
    return (uint32_t)(esp_timer_get_time() / 1000);
}

static bool read_flash(void *context, uint32_t at, void *data, size_t size)
{
    (void)context;
    return esp_partition_read(partition, at, data, size) == ESP_OK;
}

/* A slot is written from its beginning to its end: each sector is erased as its first byte comes. */
static bool write_flash(void *context, uint32_t at, const void *data, size_t size)
{
    (void)context;
    for (uint32_t sector = (at + SECTOR - 1) / SECTOR * SECTOR; sector < at + size; sector += SECTOR)
        if (esp_partition_erase_range(partition, sector, SECTOR) != ESP_OK)
            return false;
    return esp_partition_write(partition, at, data, size) == ESP_OK;
}

static void hear(void *context, const midge_event *event)
{
    (void)context;
    if (event->tiding != MIDGE_MODEL && event->tiding != MIDGE_STORED)
        ESP_LOGI(TAG, "%d, %u: %.*s %.*s", (int)event->tiding, (unsigned)event->number, (int)event->text.size,
                 event->text.data, (int)event->why.size, event->why.data);
}

static void give_row(void *context, uint32_t index, float *inputs, float *target)
{
    (void)context;
    memcpy(inputs, rows[index], sizeof rows[index]);
    *target = targets[index];
}

static void take_rows(void)
{
    for (uint32_t i = 0; i < ROWS; i++) {
        targets[i] = 0;
        for (uint32_t k = 0; k < INPUTS; k++) {
            rows[i][k] = (float)(esp_random() % 2000u) / 1000.0f - 1.0f;
            targets[i] += rows[i][k] * (float)k;
            midge_observe(&moments[k], rows[i][k]);
        }
        midge_observe(&moments[INPUTS], targets[i]);
    }
}

static bool open_link(void)
{
    esp_tls_cfg_t options = {.cacert_buf = (const unsigned char *)AUTHORITY, .cacert_bytes = sizeof AUTHORITY,
                             .timeout_ms = 10000};
    if (tls != NULL)
        esp_tls_conn_destroy(tls);
    tls = esp_tls_init();
    return tls != NULL && esp_tls_conn_new_sync(BROKER, sizeof BROKER - 1, 8883, &options, tls) == 1;
}

static void train(midge *m)
{
    midge_model model;
    if (!midge_model_of(m, MIDGE_REGRESSION, &model) || model.inputs != INPUTS) {
        midge_skip(m);
        return;
    }
    midge_fit fit = midge_train(m, &model, give_row, NULL, ROWS, work, sizeof work / sizeof work[0]);
    if (midge_submit(m, &fit) != MIDGE_DONE)
        ESP_LOGW(TAG, "the update was not stored");
}

void app_main(void)
{
    midge_config config = {.federation = "pumps", .device = "pump-17", .user = "pump-17", .password = "secret",
                           .machine = "esp32", .parameters = PARAMETERS, .frozen = 128, .packet = 1280, .slot = SECTOR,
                           .feedback = true, .event = hear};
    midge_port port = {NULL, send_all, receive_some, milliseconds, read_flash, write_flash};
    take_rows();
    esp_fill_random(config.entropy, sizeof config.entropy);
    partition = esp_partition_find_first(ESP_PARTITION_TYPE_DATA, ESP_PARTITION_SUBTYPE_ANY, "midge");
    midge *m = partition == NULL ? NULL : midge_begin(arena, sizeof arena, &config, &port);
    while (m != NULL) {
        switch (midge_poll(m)) {
        case MIDGE_DOWN:
        case MIDGE_REFUSED:
            vTaskDelay(pdMS_TO_TICKS(2000));
            if (open_link())
                midge_connect(m);
            break;
        case MIDGE_MEASURE: midge_give(m, moments, INPUTS + 1); break;
        case MIDGE_TRAIN: train(m); break;
        case MIDGE_IDLE: vTaskDelay(pdMS_TO_TICKS(10)); break;
        default: m = NULL; break; /* another device has this name, or the operator withdrew this one */
        }
    }
    ESP_LOGE(TAG, "this device takes no part");
}
