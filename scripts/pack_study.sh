#!/bin/sh
# The study for a GPU machine that has no compiler and no network: sh pack_study.sh BUILD_DIR OUT.tar.xz
#
# BUILD_DIR is a release build with the CUDA backend. There, with books.tar.xz beside it:
#     tar xf OUT.tar.xz && cd msa-study
#     python3 scripts/study.py prepare ../books.tar.xz
#     python3 scripts/study.py run main --eval --gpus 2
#     python3 scripts/training_speed.py --commit COMMIT
# and docs/results is what to bring back.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "$1" && pwd)
archive=$2
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
packed=$directory/msa-study
mkdir -p "$packed/lib" "$packed/build/release/cli" "$packed/scripts" "$packed/docs" \
    "$packed/models/msa-36m"
cp -r "$here/recipes" "$packed/"
cp "$here"/scripts/study*.py "$here/scripts/training_speed.py" "$packed/scripts/"
cp "$here/README.md" "$packed/"
cp "$here/docs/quality.md" "$here/docs/claims.md" "$here/docs/training.md" "$packed/docs/"
cp "$here"/models/msa-36m/*.json "$packed/models/msa-36m/"
cp "$build/cli/msa" "$build/src/libmsa.so.0" "$build/src/libmsa_cuda.so.0" "$build/src/engine/libmsa_engine.so.0" \
    "$packed/lib/"
# what the program needs beside the C library
ldd "$build/cli/msa" | awk '/=> \// && !/libmsa|\/lib(c|m|dl|rt|pthread)\.so/ { print $3 }' |
    xargs -I{} cp {} "$packed/lib/"
strip --strip-unneeded "$packed"/lib/*
cat > "$packed/build/release/cli/msa" <<'END'
#!/bin/sh
lib=$(cd "$(dirname "$0")/../../../lib" && pwd)
LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$lib/msa" "$@"
END
chmod +x "$packed/build/release/cli/msa"
tar -C "$directory" -cJf "$archive" msa-study
