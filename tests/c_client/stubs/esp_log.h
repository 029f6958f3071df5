void log_line(const char *, const char *, ...);
#define ESP_LOGI(tag, ...) log_line(tag, __VA_ARGS__)
#define ESP_LOGW(tag, ...) log_line(tag, __VA_ARGS__)
#define ESP_LOGE(tag, ...) log_line(tag, __VA_ARGS__)
