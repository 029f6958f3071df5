/* core.c on the host. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

int run_core(void);
void say_line(const char *text);

void say_line(const char *text)
{
    puts(text);
}

int main(void)
{
    return run_core();
}
