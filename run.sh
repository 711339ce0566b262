#!/bin/sh
# See it work: sh run.sh [FILE]
#
# Builds the program, makes a small random M3-shaped model, reads a long text with sparse attention (FILE,
# or 64K tokens of the documents on this machine), generates a little, does the same with dense attention
# and puts the two beside each other. The model is random: the numbers are real, the text is noise.
set -eu
cd "$(dirname "$0")"
sh scripts/setup.sh
echo "== building"
sh scripts/build.sh release msa_program
msa=build/release/cli/msa
demo=build/demo
mkdir -p "$demo"

if [ ! -f "$demo/model/config.json" ]; then
    echo "== making a model"
    rm -rf "$demo/model.part"
    "$msa" make-model "$demo/model.part" --preset small
    mv "$demo/model.part" "$demo/model"
fi
"$msa" inspect "$demo/model"

text=${1:-}
echo
if [ -z "$text" ]; then
    text="$demo/text.txt"
    python3 scripts/gather_text.py "$text" 65600
fi

for attention in sparse dense; do
    echo
    echo "== reading $text with $attention attention, then writing 64 tokens"
    "$msa" run "$demo/model" --file "$text" -n 64 --ignore-stop --attention $attention \
        --stats "$demo/$attention.json"
done
echo
echo "== sparse beside dense"
python3 scripts/compare_runs.py "$demo/sparse.json" "$demo/dense.json"
cat <<END

Next: $msa chat MODEL          talk with a model folder in Hugging Face layout
      $msa run MODEL -f FILE   read a document, write on
      $msa --help              everything else
END
