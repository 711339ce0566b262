#!/bin/sh
# A compiler launcher that keeps what the compiler says beside its object file, for later checks:
# sh keep_log.sh COMPILER [ARGUMENT]... -o OBJECT ...  writes OBJECT.log
set -u
object=
previous=
for argument in "$@"; do
    [ "$previous" = "-o" ] && object=$argument
    previous=$argument
done
if [ -z "$object" ]; then
    exec "$@"
fi
"$@" 2>"$object.log"
status=$?
grep -v -e '^ptxas info *: [0-9]* bytes gmem' -e '^ptxas info *: Compiling entry' \
    -e '^ptxas info *: Function properties' -e '^ptxas info *: Used ' \
    -e '^ptxas info *: Compile time' -e '^ *[0-9]* bytes stack frame, 0 bytes spill stores' \
    "$object.log" >&2
exit $status
