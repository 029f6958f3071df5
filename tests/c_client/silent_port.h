/* A port without a link and without a clock, whose flash is the array `flash` of the file that includes this. Writing to
 * it is what the tests differ in.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
static bool send_nothing(void *context, const uint8_t *data, size_t size)
{
    (void)context, (void)data, (void)size;
    return true;
}

static int receive_nothing(void *context, uint8_t *data, size_t size)
{
    (void)context, (void)data, (void)size;
    return 0;
}

static uint32_t no_time(void *context)
{
    (void)context;
    return 0;
}

static bool read_flash(void *context, uint32_t at, void *data, size_t size)
{
    (void)context;
    memcpy(data, flash + at, size);
    return true;
}
