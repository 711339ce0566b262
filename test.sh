#!/bin/sh
# Build and run every test: sh test.sh [quick|gpu|python]
#
# release    every test, the program and the scripts included
# asan       the tests again, with shorter tables of cases, under the address and undefined-behaviour
#            sanitizers; not those of numbers that take long, nor of what tsan runs
# tsan       what uses threads, under the thread sanitizer
# `quick` stops after release. `gpu` tests the CUDA backend on this machine's GPU instead
# (scripts/test_gpu.sh). `python` installs the Python package with PyTorch and transformers into
# build/venv (about 1 GB from PyPI) and runs its tests, Hugging Face's MiniMax-M3 included.
# Ends with "N passed, N failed, N skipped"; the exit status is the result.
set -u
cd "$(dirname "$0")"
sh scripts/setup.sh || exit 1

mode=${1:-all}
reports=""
cores=$(nproc)

# run PRESET [CTEST ARGUMENT]...
run() {
    preset=$1
    shift
    echo "== $preset: build"
    report="$PWD/build/$preset/tests.xml"
    reports="$reports $preset=$report"
    rm -f "$report"
    sh scripts/build.sh "$preset" || return 0 # the missing report counts as a failure
    echo "== $preset: test"
    ctest --test-dir "build/$preset" -j "$cores" --output-on-failure --output-junit "$report" \
        --test-output-size-passed 1000000 --test-output-size-failed 1000000 "$@" |
        sed -u -e '/^ *Start /d; /^Internal/d; /^Test project/d; /^$/d' -e '/% tests passed/,$d'
    return 0
}

case $mode in
all)
    run release
    run asan -LE check -E "aarch64|determinism|test_convert_training"
    run tsan -L "unit|ops|engine|threads" -E "test_kernels|test_tokenizer|test_identities"
    ;;
quick) run release ;;
gpu) exec sh scripts/test_gpu.sh ;;
python)
    python3 -m venv build/venv && build/venv/bin/pip install -q "./bindings/python[transformers,test]" &&
        build/venv/bin/python -m pytest -q -rs -p no:cacheprovider bindings/python/tests
    exit
    ;;
*)
    echo "usage: sh test.sh [quick|gpu|python]" >&2
    exit 2
    ;;
esac
echo "== result"
python3 scripts/count_tests.py $reports
