#!/bin/sh
# Tests built here, run on a GPU machine that has no compiler: sh pack_gpu_tests.sh BUILD_DIR OUT.tar.xz
#
# There:  tar xf OUT.tar.xz && sh msa-gpu-tests/scripts/test_gpu.sh msa-gpu-tests
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "$1" && pwd)
archive=$2
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
packed=$directory/msa-gpu-tests
mkdir -p "$packed/src" "$packed/lib" "$packed/scripts" "$packed/tests/golden/data" "$packed/tests/fuzz/corpora"
cp "$build/src/libmsa_cuda.so.0" "$build/src/libmsa.so.0" "$packed/src/"
cp "$build/tests/gpu-programs.txt" "$packed/tests/"
while read -r program; do
    mkdir -p "$packed/$(dirname "$program")"
    cp "$build/$program" "$packed/$program"
    strip --strip-unneeded "$packed/$program"
    ldd "$build/$program" | awk '/libcmocka|libpcre2|libutf8proc/ { print $3 }'
done <"$build/tests/gpu-programs.txt" | sort -u | xargs -I{} cp {} "$packed/lib/"
strip --strip-unneeded "$packed"/src/*
cp -r "$here/../tests/golden/data/model" "$packed/tests/golden/data/"
for golden in "$here"/../../shared/golden/model/*; do # the large ones, where they are
    [ -d "$golden" ] && cp -rn "$golden" "$packed/tests/golden/data/model/"
done
cp -r "$here/../tests/fuzz/corpora/session" "$packed/tests/fuzz/corpora/"
cp "$here/test_gpu.sh" "$here/sanitize_gpu.sh" "$here/gpu_common.sh" "$here/check_ptxas.py" \
    "$packed/scripts/"
(cd "$build" && find src/backend/cuda -name '*.o.log' -exec cp --parents {} "$packed" \;)
tar -C "$directory" -cJf "$archive" msa-gpu-tests
