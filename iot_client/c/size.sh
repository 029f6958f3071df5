#!/bin/sh
# What the client takes on a Cortex-M4: bytes of code and constants without SHA-256 and CRC-32, and bytes of memory beside
# the model and its weights (8 a parameter), for a packet of 1,280 bytes. Beside it, all of it linked with what it takes of
# the C library and of the compiler's (newlib-nano, libgcc), as if nothing else had it. The last line is JSON.
#   size.sh [options of the compiler]
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
flags="-std=c99 -Os -mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 -ffp-contract=off $*"
# shellcheck disable=SC2086
arm-none-eabi-gcc $flags -ffunction-sections -fdata-sections -c midge.c -o "$work/midge.o"
cat >"$work/memory.c" <<END
#include "midge.h"
const unsigned char memory_beside[MIDGE_ARENA(1000, 0, 1280) - 8000];
END
# shellcheck disable=SC2086
arm-none-eabi-gcc $flags -I. -c "$work/memory.c" -o "$work/memory.o"
# shellcheck disable=SC2086
arm-none-eabi-gcc $flags --specs=nano.specs -nostartfiles -Wl,-e,midge_begin "$work/midge.o" -lm -o "$work/linked"
arm-none-eabi-size -A "$work/midge.o" >"$work/sections"
linked=$(arm-none-eabi-size -A "$work/linked" | awk '$1 ~ /^\.(text|rodata|data|ARM)/ && $1 !~ /attributes/ { all += $2 } END { print all }')
arm-none-eabi-nm -S "$work/memory.o" >"$work/symbols"
awk -v linked="$linked" '
  FILENAME ~ /symbols/ { if ($4 == "memory_beside") memory = $2; next }
  $1 ~ /^\.(text|rodata)/ {
    all += $2
    if ($1 ~ /sha256|crc32|\.rotate|rodata\.(k|start|table)(\.|$)/) crypto += $2
  }
  END {
    printf "code and constants %d bytes, of which SHA-256 and CRC-32 %d; linked %d\n", all, crypto, linked
    printf "{\"c_text_bytes\": %d, \"c_crypto_bytes\": %d, \"c_linked_bytes\": %d, \"c_ram_bytes\": 0x%s}\n", \
      all - crypto, crypto, linked, memory
  }' "$work/symbols" "$work/sections" | {
  read -r words
  read -r line
  echo "$words"
  hex=$(echo "$line" | sed 's/.*0x\([0-9a-f]*\).*/\1/')
  echo "$line" | sed "s/0x$hex/$((0x$hex))/"
}
