// A device of a federation on an ESP32: it learns which of three classes a row of 12 values is of.
//
// Give the folder iot_client/c to the Arduino IDE as a library. The outbox lies in a partition named "midge": put a line
// such as `midge, data, 0x40, , 0x10000` into the sketch's partitions.csv. Other boards: change the five functions.
//
// SPDX-License-Identifier: Apache-2.0
#include <WiFi.h>
#include <esp_partition.h>
#include <esp_random.h>
#include <midge.h>

static const char *WIFI = "network", *WIFI_PASSWORD = "password", *BROKER = "192.168.1.10";
static const uint32_t PARAMETERS = 400, INPUTS = 12, ROWS = 64, BATCH = 8, SECTOR = 4096;

static uint64_t arena[MIDGE_ARENA(400, 128, 1280) / 8 + 1];
static float work[MIDGE_WORK(12, 16, 4, 8)];
static float rows[64][12], labels[64];
static midge_moment moments[12];
static WiFiClient client;
static const esp_partition_t *partition;
static midge *device;

static bool sendAll(void *, const uint8_t *data, size_t size) { return client.write(data, size) == size; }

static int receiveSome(void *, uint8_t *data, size_t size)
{
    if (!client.connected() && client.available() == 0)
        return -1;
    int waiting = client.available();
    return waiting <= 0 || size == 0 ? 0 : client.read(data, size);
}

static uint32_t milliseconds(void *) { return millis(); }

static bool readFlash(void *, uint32_t at, void *data, size_t size)
{
    return esp_partition_read(partition, at, data, size) == ESP_OK;
}

static bool writeFlash(void *, uint32_t at, const void *data, size_t size)
{
    // A slot is written from its beginning to its end: erase each sector as its first byte comes.
    for (uint32_t sector = (at + SECTOR - 1) / SECTOR * SECTOR; sector < at + size; sector += SECTOR)
        if (esp_partition_erase_range(partition, sector, SECTOR) != ESP_OK)
            return false;
    return esp_partition_write(partition, at, data, size) == ESP_OK;
}

static void hear(void *, const midge_event *event)
{
    if (event->tiding == MIDGE_VERDICT || event->tiding == MIDGE_TROUBLE || event->tiding == MIDGE_DOES_NOT_FIT)
        Serial.printf("update %u: %.*s %.*s\n", (unsigned)event->number, (int)event->text.size, event->text.data,
                      (int)event->why.size, event->why.data);
}

static void giveRow(void *, uint32_t index, float *inputs, float *target)
{
    memcpy(inputs, rows[index], sizeof rows[index]);
    *target = labels[index];
}

void setup()
{
    Serial.begin(115200);
    WiFi.begin(WIFI, WIFI_PASSWORD);
    partition = esp_partition_find_first(ESP_PARTITION_TYPE_DATA, ESP_PARTITION_SUBTYPE_ANY, "midge");
    for (uint32_t i = 0; i < ROWS; i++) // in the place of sensors
        for (uint32_t k = 0; k < INPUTS; k++) {
            rows[i][k] = (float)random(-1000, 1000) / 1000;
            midge_observe(&moments[k], rows[i][k]);
            labels[i] = rows[i][0] > 0.3f ? 2 : rows[i][1] > 0 ? 1 : 0;
        }
    static char name[24];
    snprintf(name, sizeof name, "esp32-%08x", (unsigned)ESP.getEfuseMac());
    midge_config config = {};
    config.federation = "pumps";
    config.device = name;
    config.machine = "esp32";
    config.parameters = PARAMETERS;
    config.frozen = 128;
    config.packet = 1280;
    config.feedback = true;
    config.slot = 4096;
    config.event = hear;
    esp_fill_random(config.entropy, sizeof config.entropy);
    midge_port port = {nullptr, sendAll, receiveSome, milliseconds, readFlash, writeFlash};
    device = partition == nullptr ? nullptr : midge_begin(arena, sizeof arena, &config, &port);
    if (device == nullptr)
        Serial.println("no partition named midge, or no room");
}

void loop()
{
    if (device == nullptr)
        return;
    switch (midge_poll(device)) {
    case MIDGE_DOWN:
    case MIDGE_REFUSED:
        client.stop();
        delay(2000);
        if (WiFi.status() == WL_CONNECTED && client.connect(BROKER, 1883))
            midge_connect(device);
        break;
    case MIDGE_MEASURE: midge_give(device, moments, INPUTS); break;
    case MIDGE_TRAIN: {
        midge_model model;
        if (!midge_model_of(device, MIDGE_CLASSIFICATION, &model) || model.inputs != INPUTS) {
            midge_skip(device);
            break;
        }
        midge_fit fit = midge_train(device, &model, giveRow, nullptr, ROWS, work, sizeof work / sizeof work[0]);
        midge_submit(device, &fit);
        break;
    }
    case MIDGE_IDLE: delay(5); break;
    default: delay(60000); break; // another device has this name, or the operator withdrew this one
    }
}
