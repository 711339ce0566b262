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
mkdir -p "$packed/src" "$packed/lib" "$packed/tests/ops" "$packed/scripts"
cp "$build/src/libmsa_cuda.so.0" "$build/src/libmsa.so.0" "$packed/src/"
for program in op_attend op_embed op_index8 op_linear op_moe op_rmsnorm op_rope op_router op_select op_swiglu \
    test_attention_args test_determinism test_huge_offsets test_identities; do
    cp "$build/tests/ops/$program" "$packed/tests/ops/"
done
cmocka=$(ldd "$packed/tests/ops/op_rope" | awk '/libcmocka/ { print $3 }')
cp "$cmocka" "$packed/lib/"
strip --strip-unneeded "$packed"/tests/ops/* "$packed"/src/*
cp "$here/test_gpu.sh" "$here/check_ptxas.py" "$packed/scripts/"
(cd "$build" && find src/backend/cuda -name '*.o.log' -exec cp --parents {} "$packed" \;)
tar -C "$directory" -cJf "$archive" msa-gpu-tests
