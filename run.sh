#!/bin/sh
# See it work: sh run.sh [FILE]
#
# Builds the program and reads a long text (FILE, or what this project and this machine have to read) with
# sparse attention, then with dense attention, and puts the two beside each other.
# With a trained model in models/ a fact is hidden in 129K tokens of the text, another one each time, and the
# model is asked for it: it found 100 of 100 in books, 97 in sources. Minutes on two cores, most of
# them dense attention's. Without one a random model reads: the numbers are real, its text is noise.
set -eu
cd "$(dirname "$0")"
sh scripts/setup.sh
echo "== building"
sh scripts/build.sh release msa_program
msa=build/release/cli/msa
demo=build/demo
mkdir -p "$demo"
text=${1:-}

# gather N_BYTES: a text of this machine, where none is named
gather() {
    [ -z "$text" ] || return 0
    text="$demo/text.txt"
    python3 scripts/gather_text.py "$text" "$1"
}

find_needle() {
    "$msa" inspect "$1"
    echo
    gather 800000
    echo
    echo "== reading it with sparse, then with dense attention (Ctrl-C ends the second one early)"
    trap : INT
    "$msa" needle "$1" --file "$text" --length 129K --seed "$(date +%s)" --compare || [ $? = 130 ]
    trap - INT
}

read_with_random_model() {
    if [ ! -f "$demo/model/config.json" ]; then
        echo "== making a model"
        rm -rf "$demo/model.part"
        "$msa" make-model "$demo/model.part" --preset small
        mv "$demo/model.part" "$demo/model"
    fi
    "$msa" inspect "$demo/model"
    echo
    gather 65600
    for attention in sparse dense; do
        echo
        echo "== reading $text with $attention attention, then writing 64 tokens"
        "$msa" run "$demo/model" --file "$text" -n 64 --ignore-stop --attention $attention \
            --stats "$demo/$attention.json"
    done
    echo
    echo "== sparse beside dense"
    python3 scripts/compare_runs.py "$demo/sparse.json" "$demo/dense.json"
}

bundled=
for config in models/*/config.json; do
    [ ! -f "$config" ] || bundled=${bundled:-${config%/config.json}}
done
if [ -n "$bundled" ]; then
    find_needle "$bundled"
else
    read_with_random_model
fi
cat <<END

Next: $msa needle MODEL -f FILE   hide a fact in a document, ask for it
      $msa chat MODEL             talk with a model folder in Hugging Face layout
      $msa run MODEL -f FILE      read a document, write on
      $msa --help                 everything else
END
