#!/bin/sh
# The Python package with libraries built here, for a GPU machine that has PyTorch, transformers and
# pytest but no compiler: sh pack_gpu_python.sh BUILD_DIR OUT.tar.xz
#
# There:  tar xf OUT.tar.xz && sh msa-gpu-python/test.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "$1" && pwd)
archive=$2
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
packed=$directory/msa-gpu-python
package=$packed/bindings/python
mkdir -p "$package" "$packed/tests/api"
cp -r "$here/../bindings/python/src" "$here/../bindings/python/tests" "$package/"
find "$package" -name __pycache__ -prune -exec rm -rf {} +
cp "$here/../tests/api/abi_sizes.c" "$packed/tests/api/" # the structures must equal these
cp "$build/src/libmsa.so.0" "$build/src/libmsa_cuda.so.0" "$package/src/msa/"
strip --strip-unneeded "$package"/src/msa/*.so.0
cat >"$packed/test.sh" <<'END'
#!/bin/sh
# The package's tests, on the CPU and on the GPU.
cd "$(dirname "$0")/bindings/python" || exit 1
PYTHONPATH=$PWD/src PYTHONDONTWRITEBYTECODE=1 exec python3 -m pytest -q -rs -p no:cacheprovider tests "$@"
END
tar -C "$directory" -cJf "$archive" msa-gpu-python
