#!/bin/sh
# Build the kernels and their test for aarch64 and run them under an emulator.
# usage: cross_kernels.sh SOURCE_DIR BUILD_DIR; exit status 77 means skipped
set -eu
source=$1 build=$2
cc=aarch64-linux-gnu-gcc
emulator=$(command -v qemu-aarch64 || command -v qemu-aarch64-static || true)
if ! command -v $cc > /dev/null; then
    echo "SKIP: no $cc"
    exit 77
fi
if [ -z "$emulator" ]; then
    echo "SKIP: no qemu-aarch64"
    exit 77
fi
isa=$source/src/backend/cpu/isa
mkdir -p "$build"
$cc -std=c11 -O2 -static -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion \
    -Wdouble-promotion -Werror -ffp-contract=off -fno-math-errno -fno-trapping-math \
    -I"$source/src" -I"$source/include" "$source/tests/unit/test_kernels.c" \
    "$source/src/base/dtype.c" "$isa"/*generic.c "$isa"/*neon*.c "$isa/kernel_tables.c" \
    -lm -o "$build/test_kernels_aarch64"
exec "$emulator" "$build/test_kernels_aarch64"
