# Sourced by test_gpu.sh and sanitize_gpu.sh: where the build is, programs side by side, what became of
# them. Expects $here, the folder of the scripts, and $build, a build of the release preset or what
# pack_gpu_tests.sh made of one.

build=$(cd "$build" && pwd)
logs=$build/gpu-logs
mkdir -p "$logs"
export MSA_TEST_BACKEND=cuda
export LD_LIBRARY_PATH="$build/src:$build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
if [ -d "$build/tests/golden/data" ]; then # a pack
    export MSA_SOURCE_DIR="$build"
else
    MSA_SOURCE_DIR=$(cd "$here/.." && pwd)
    export MSA_SOURCE_DIR
fi
programs=$(cat "$build/tests/gpu-programs.txt")
n_passed=0
n_failed=0

# run_all PREFIX N COMMAND...: COMMAND PROGRAM for every one of $programs, N at a time; output and exit
# status go to the logs. PROGRAM:TEST is one test of it (tests/harness/test_filter.c), PROGRAM:TEST@0of8
# an eighth of that test's cases (tests/ops/cases.c).
run_all() {
    prefix=$1
    n_jobs=$2
    shift 2
    for program in $programs; do echo "$program"; done | PREFIX="$logs/$prefix" BUILD="$build" \
        xargs -P "$n_jobs" -I{} sh -c '
            name=$PREFIX$(basename "$0")
            case $0 in *@*) export MSA_TEST_PART="${0#*@}" ;; esac
            test=${0%@*}
            case $test in *:*) export MSA_TEST_FILTER="${test#*:}" ;; esac
            start=$(date +%s)
            "$@" "$BUILD/${test%:*}" >"$name.log" 2>&1
            echo $? >"$name.rc"
            echo $(($(date +%s) - start)) >"$name.s"' {} "$@"
    for program in $programs; do judge "$prefix$(basename "$program")"; done
}

# judge NAME: what became of a program; a skip is a failure here, and so is a name that no test has.
judge() {
    status=$(cat "$logs/$1.rc")
    if grep -q 'Running 0 test' "$logs/$1.log"; then status="$status, no such test"; fi
    seconds=$(cat "$logs/$1.s" 2>/dev/null)
    case $status in
    0)
        echo "passed  $1${seconds:+  $seconds s}"
        n_passed=$((n_passed + 1))
        ;;
    *)
        echo "FAILED  $1 (exit status $status)"
        grep -v -e '^\[ RUN' -e '^\[ *OK' "$logs/$1.log" | head -n 25 | cut -c1-300 | sed 's/^/        /'
        n_failed=$((n_failed + 1))
        ;;
    esac
}
