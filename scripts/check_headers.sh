#!/bin/sh
# Every public header compiles alone, as C99 to C17 and as C++, with all warnings.
set -eu
cd "$(dirname "$0")/.."
flags="-Iinclude -fsyntax-only -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-unused-function -Werror"
checked=0
for compiler in gcc g++ clang-14 clang++-14; do
    if ! command -v "$compiler" >/dev/null 2>&1; then
        echo "check_headers: no $compiler here"
        continue
    fi
    case $compiler in
    *++*) language=c++ standards="c++11 c++17" ;;
    *) language=c standards="c99 c11 c17" ;;
    esac
    for standard in $standards; do
        for header in include/msa/*.h; do
            echo "#include \"msa/$(basename "$header")\"" |
                "$compiler" -x $language -std=$standard $flags -Wno-unused-const-variable -
            checked=$((checked + 1))
        done
    done
done
echo "check_headers: $checked compilations"
