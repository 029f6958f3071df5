/* core.c on a Cortex-M4 of QEMU's board mps2-an386: vectors, start, and lines through semihosting.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <stdint.h>

int run_core(void);
void say_line(const char *text);
void start_board(void);
void fail_board(void);

extern uint32_t stack_top, data_from, data_begin, data_end, bss_begin, bss_end;

static void ask_host(uint32_t operation, const void *what)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = what;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

void say_line(const char *text)
{
    ask_host(4, text); /* SYS_WRITE0 */
    ask_host(4, "\n");
}

static void end_board(uint32_t code)
{
    const uint32_t words[2] = {0x20026, code}; /* ADP_Stopped_ApplicationExit */
    ask_host(0x20, words);                     /* SYS_EXIT_EXTENDED */
    for (;;)
        continue;
}

void fail_board(void)
{
    say_line("fault");
    end_board(99);
}

void start_board(void)
{
    for (uint32_t *to = &data_begin, *from = &data_from; to < &data_end;)
        *to++ = *from++;
    for (uint32_t *to = &bss_begin; to < &bss_end;)
        *to++ = 0;
    *(volatile uint32_t *)0xe000ed88u |= 0xfu << 20; /* the floating-point unit */
    __asm__ volatile("dsb\n isb");
    end_board((uint32_t)run_core());
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top,         (const void *)start_board, (const void *)fail_board, (const void *)fail_board,
    (const void *)fail_board, (const void *)fail_board, (const void *)fail_board};
