#include <Arduino.h>
enum { WL_CONNECTED = 3 };
struct Network { void begin(const char *, const char *); int status(); };
extern Network WiFi;
struct WiFiClient { size_t write(const uint8_t *, size_t); int read(uint8_t *, size_t); int available(); bool connected(); void stop(); bool connect(const char *, int); };
