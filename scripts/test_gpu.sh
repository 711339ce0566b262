#!/bin/sh
# Test the CUDA backend on this machine's GPU: sh test_gpu.sh [BUILD_DIR] [quick]
#
# BUILD_DIR is a build of the release preset (default: build/release, built first), or what
# pack_gpu_tests.sh made of one elsewhere. Runs every operator test on the device, then reduced case
# lists under compute-sanitizer (memcheck, racecheck, initcheck), then reads the ptxas report.
# `quick` leaves the sanitizers out. Ends with "N passed, N failed"; the exit status is the result.
set -u
here=$(cd "$(dirname "$0")" && pwd)
build=$here/../build/release
tools="memcheck racecheck initcheck"
for argument in "$@"; do
    case $argument in
    quick) tools= ;;
    *) build=$argument ;;
    esac
done
if [ "$build" = "$here/../build/release" ]; then
    sh "$here/setup.sh" && sh "$here/build.sh" release || exit 1
fi
build=$(cd "$build" && pwd)
logs=$build/gpu-logs
mkdir -p "$logs"
export MSA_TEST_BACKEND=cuda
export LD_LIBRARY_PATH="$build/src:$build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

attention="op_select op_attend op_index8 test_identities test_determinism test_attention_args test_huge_offsets"
layer="op_embed op_linear op_moe op_rmsnorm op_rope op_router op_swiglu"
n_passed=0
n_failed=0

# start NAME COMMAND...: in the background, its output and exit status into the logs.
start() {
    name=$1
    shift
    (
        "$@" >"$logs/$name.log" 2>&1
        echo $? >"$logs/$name.rc"
    ) &
}

# judge NAME: what happened to a started command; a skip is a failure here.
judge() {
    status=$(cat "$logs/$1.rc")
    if [ "$status" = 0 ]; then
        echo "passed  $1"
        n_passed=$((n_passed + 1))
    else
        echo "FAILED  $1 (exit status $status)"
        grep -v -e '^\[ RUN' -e '^\[ *OK' "$logs/$1.log" | head -n 25 | cut -c1-300 | sed 's/^/        /'
        n_failed=$((n_failed + 1))
    fi
}

echo "== operators on the device"
rm -f "$logs"/*
for program in $attention $layer; do start "$program" "$build/tests/ops/$program"; done
wait
for program in $attention $layer; do judge "$program"; done

for tool in $tools; do
    echo "== $tool"
    [ "$tool" = initcheck ] && export MSA_TEST_RAW_WORKSPACE=1
    for program in op_select op_attend op_index8 $layer; do
        MSA_TEST_REDUCED=1 start "$tool-$program" compute-sanitizer --tool "$tool" \
            --error-exitcode 1 "$build/tests/ops/$program"
    done
    wait
    for program in op_select op_attend op_index8 $layer; do judge "$tool-$program"; done
done

echo "== ptxas report"
python3 "$here/check_ptxas.py" "$build" >"$logs/ptxas.log" 2>&1
echo $? >"$logs/ptxas.rc"
tail -n 1 "$logs/ptxas.log"
judge ptxas
echo "$n_passed passed, $n_failed failed"
[ "$n_failed" = 0 ]
