#!/bin/sh
# The library exports exactly the listed symbols, and needs no library beyond libc and libm.
# Usage: check_library.sh LIBRARY SYMBOLS_FILE NM READELF
set -u
library=$1 symbols=$2 nm=$3 readelf=$4
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
status=0

grep -v '^#' "$symbols" | grep . | LC_ALL=C sort > "$work/listed"
"$nm" -D --defined-only "$library" | awk '{ print $3 }' | LC_ALL=C sort > "$work/exported"
test -s "$work/exported" || { echo "$library: no symbols read"; exit 1; }
diff -u "$work/listed" "$work/exported" || {
    echo "exported symbols (+) differ from $symbols (-)"
    status=1
}

# ld-linux is libc's own loader.
"$readelf" -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' > "$work/needed"
if grep -v -E '^(libc|libm|ld-linux[-a-z0-9_]*)\.so' "$work/needed"; then
    echo "$library: needs the libraries above, must need libc and libm only"
    status=1
fi
exit $status
