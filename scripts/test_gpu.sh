#!/bin/sh
# Test the CUDA backend on this machine's GPU: sh test_gpu.sh [BUILD_DIR] [quick]
#
# BUILD_DIR is a build of the release preset (default: build/release, built first), or what
# pack_gpu_tests.sh made of one elsewhere. Runs every test of CTest's label gpu, operators, gradients,
# engine and goldens; then sanitize_gpu.sh, unless `quick`; then reads the ptxas report. Ends with
# "N passed, N failed"; the exit status is the result.
set -u
here=$(cd "$(dirname "$0")" && pwd)
build=$here/../build/release
sanitize=1
for argument in "$@"; do
    case $argument in
    quick) sanitize=0 ;;
    *) build=$argument ;;
    esac
done
if [ "$build" = "$here/../build/release" ]; then
    sh "$here/setup.sh" && sh "$here/build.sh" release || exit 1
fi
. "$here/gpu_common.sh"
rm -f "$logs"/*

echo "== tests on the device"
run_all "" "$(nproc)" env
if [ $sanitize = 1 ]; then
    sh "$here/sanitize_gpu.sh" "$build"
    echo $? >"$logs/sanitizers.rc"
    : >"$logs/sanitizers.log"
    judge sanitizers
fi

echo "== ptxas report"
python3 "$here/check_ptxas.py" "$build" >"$logs/ptxas.log" 2>&1
echo $? >"$logs/ptxas.rc"
tail -n 1 "$logs/ptxas.log"
judge ptxas
echo "$n_passed passed, $n_failed failed"
[ "$n_failed" = 0 ]
