#!/bin/sh
# Every public header compiles alone, in every language a caller may use, without a warning.
# Usage: check_headers.sh INCLUDE_DIR C_COMPILER [CXX_COMPILER]
set -u
include=$1 cc=$2 cxx=${3:-}
flags="-fsyntax-only -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wundef -Werror"
failures=0

check() { # check COMPILER LANGUAGE STANDARD HEADER
    printf '#include "%s"\n' "$4" | "$1" -x "$2" -std="$3" $flags -I"$include" - || {
        echo "$4: does not compile alone as $3"
        failures=$((failures + 1))
    }
}

for path in "$include"/msa/*.h; do
    header=msa/$(basename "$path")
    for standard in c99 c11 c17; do check "$cc" c $standard "$header"; done
    test -z "$cxx" && continue
    for standard in c++11 c++17; do check "$cxx" c++ $standard "$header"; done
done
test -n "$cxx" || echo "no C++ compiler: C++ not checked"
exit $((failures > 0))
