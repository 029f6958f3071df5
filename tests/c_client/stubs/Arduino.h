#include <stdint.h>
#include <stdio.h>
#include <string.h>
uint32_t millis();
void delay(uint32_t);
long random(long, long);
struct Printer { void begin(int); void println(const char *); void printf(const char *, ...); };
extern Printer Serial;
struct Chip { uint64_t getEfuseMac(); };
extern Chip ESP;
