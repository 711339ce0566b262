#!/bin/sh
# Configure and build one preset; quiet unless it fails. Usage: build.sh PRESET [NINJA ARGUMENT]...
set -eu
cd "$(dirname "$0")/.."
preset=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! cmake --preset "$preset" >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
fi
if ! ninja -C "build/$preset" "$@" >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    exit 1
fi
