#!/bin/sh
# Make sure the packages that run.sh and test.sh need are installed (Debian 12).
# Installs what is missing as root; otherwise prints the line to run and exits 1. Needs no network when
# nothing is missing.
set -eu

packages="gcc libc6-dev make cmake ninja-build pkg-config libpcre2-dev libutf8proc-dev libdnnl-dev
libedit-dev libcmocka-dev python3 python3-numpy python3-pytest"

if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "setup: this is no Debian system; install what these packages hold and build with cmake:" >&2
    echo "setup:" $packages >&2
    exit 1
fi

missing=""
for package in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "setup: packages are missing; run this line, then start again:" >&2
    echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends$missing" >&2
    exit 1
fi

echo "setup: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    echo "setup: apt-get failed; is there a network?" >&2
    exit 1
fi
rm -f "$log"
