#!/bin/sh
# The speed table of a GPU, peers beside it: sh run_hopper.sh MSA_PROGRAM OUT_DIR [COMMIT]
#
# Writes OUT_DIR/attention-hopper.csv and .svg (our operators, dense and MSA) and peers-hopper.csv
# (PyTorch's), prints both. Four minutes; a row that fails says why and the others run. PEERS=0 leaves
# PyTorch out, WHOLE_DENSE=1 runs dense attention over the whole prompt instead of summing its chunks.
set -u
msa=$1
out=$2
commit=${3:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
status=0
"$msa" bench attention --device cuda --budget 25 --commit "$commit" --out "$out/attention-hopper.csv" \
    ${WHOLE_DENSE:+--whole-dense} || status=1
if [ "${PEERS:-1}" != 0 ]; then
    echo
    python3 "$here/peers/hopper_attention.py" --commit "$commit" --out "$out/peers-hopper.csv" || status=1
fi
exit $status
