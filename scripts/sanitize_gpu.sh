#!/bin/sh
# compute-sanitizer over the CUDA operators: sh sanitize_gpu.sh [BUILD_DIR] [TOOL|PROGRAM[:TEST]]...
#
# BUILD_DIR as in test_gpu.sh; racecheck wants a build of the preset racecheck, whose warps arrive at
# barriers in the one way that it can follow. Runs memcheck, racecheck and initcheck, or the tools named,
# over the reduced tables of every operator's program, or of the programs and tests named (op_attend,
# op_attend:test_merge, op_attend:test_dense*, op_attend:test_dense_cases@8 in eight parts), half as many
# at a time as there are processors.
# SECONDS_EACH (default 400) ends one that takes longer; that is a failure. Ends with "N passed,
# N failed"; the exit status is the result.
set -u
here=$(cd "$(dirname "$0")" && pwd)
build=$here/../build/release
tools=
wanted=
for argument in "$@"; do
    case $argument in
    memcheck | racecheck | initcheck) tools="$tools $argument" ;;
    op_* | test_*) wanted="$wanted $argument" ;;
    *) build=$argument ;;
    esac
done
. "$here/gpu_common.sh"
chosen=
for program in $programs; do
    case $program in */ops/op_*) ;; *) continue ;; esac
    name=$(basename "$program")
    for one in ${wanted:-$name}; do
        case $one in
        "$name") chosen="$chosen $program" ;;
        "$name":*@*)
            parts=${one##*@}
            i=0
            while [ "$i" -lt "$parts" ]; do
                test=${one%@*}
                chosen="$chosen $program:${test#*:}@${i}of$parts"
                i=$((i + 1))
            done
            ;;
        "$name":*) chosen="$chosen $program:${one#*:}" ;;
        esac
    done
done
programs=$chosen
export MSA_TEST_REDUCED=1
n_jobs=$((($(nproc) + 1) / 2))
for tool in ${tools:-memcheck racecheck initcheck}; do
    echo "== $tool"
    except=
    if [ "$tool" = initcheck ]; then
        export MSA_TEST_RAW_WORKSPACE=1
        # what it reads was written by the copy engine (cp.async.bulk), which the tool does not see; the
        # plain tests, whose workspaces hold NaNs at first, show that all of it was
        except="--kernel-name-exclude kernel_substring=attend_combine_kernel"
    fi
    # shellcheck disable=SC2086
    run_all "$tool-" "$n_jobs" timeout "${SECONDS_EACH:-400}" compute-sanitizer --tool "$tool" $except \
        --error-exitcode 1
done
echo "$n_passed passed, $n_failed failed"
[ "$n_failed" = 0 ] && [ "$n_passed" -gt 0 ]
