"""The study of quality: trains the rows of recipes/study, asks them, writes the tables of docs/quality.md and
README.md, and the cells of docs/claims.md.

    study.py prepare BOOKS         tokenizer and token shards from BOOKS/train and BOOKS/valid, or from books.tar.xz
    study.py run ROW... [--eval]   train rows, side by side on several GPUs; the same again goes on
    study.py eval ROW...           ask trained rows; what they answered goes to --results
    study.py config ROW            print a row's configuration of msa train
    study.py table                 write the tables from the results

ROW is a file of recipes/study, `main`, `ablations` or `all`. Models and logs are below --work.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import study_recipes as recipes
import study_run
import study_tables

ROOT = pathlib.Path(__file__).resolve().parent.parent


def prepare(options):
    """Everything rows need in the working folder: books, tokenizer, shards."""
    work = pathlib.Path(options.work)
    books = pathlib.Path(options.books).resolve()
    (work / "shards").mkdir(parents=True, exist_ok=True)
    if not (work / "books").exists():
        if books.is_dir():
            (work / "books").symlink_to(books)
        else:
            (work / "books.part").mkdir(exist_ok=True)
            subprocess.run(["tar", "-xf", books, "-C", work / "books.part"], check=True)
            inner = next((work / "books.part").rglob("train")).parent
            inner.rename(work / "books")
    vocabulary = recipes.read_row("base")["model"]["config"]["vocab_size"]
    commands = [
        ["train-tokenizer", "books/train", "tokenizer", "--vocab", str(vocabulary), "--one-digit"],
        ["shards", "tokenizer", "books/train", "shards/train"],
        ["shards", "tokenizer", "books/valid", "shards/valid"],
    ]
    if (work / "tokenizer").exists():
        del commands[0]
    for command in commands:
        subprocess.run([options.msa, *command], cwd=work, check=True)
    return 0


def tokens(text):
    scale = {"K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:], 1)
    return round(float(text.rstrip("KMB")) * scale)


def length(text):
    return int(text.rstrip("K")) << (10 if text.endswith("K") else 0)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prepare", "config", "run", "eval", "table"])
    parser.add_argument("rows", nargs="*", metavar="ROW")
    add = parser.add_argument
    add("--msa", default=str(ROOT / "build/release/cli/msa"), help="the program")
    add("--recipes", default=str(recipes.FOLDER), help="folder of the recipes")
    add("--work", default=str(ROOT / "build/study"), help="working folder")
    add("--results", default=str(ROOT / "docs/results/study"), help="folder of results")
    add("--docs", default=str(ROOT / "docs"), help="folder of quality.md and claims.md, beside README.md")
    add("--tokens", type=tokens, default=tokens("46M"), help="of a run, such as 46M; the same for every row")
    add("--seeds", default="1", help="such as 1,2")
    add("--device", default="cuda", choices=["cuda", "cpu"])
    add("--gpus", type=int, default=1, help="rows at a time, each on a GPU of its own")
    add("--minutes", type=float, default=0, help="stop after so many, saving; the same command goes on")
    add("--eval", action="store_true", help="run: ask each row as soon as it is trained")
    add("--overlap", action="store_true", help="ask a row while the next one trains: sooner done, but times say less")
    add("--counts", type=float, default=1, help="times as many questions as recipes/study-eval.json says")
    add("--longest", type=length, default=1 << 30, help="such as 32K; leave longer questions out")
    add("--set", action="append", default=[], metavar="KEY=JSON", help="change every recipe: defaults.lr=5e-4")
    return parser.parse_args(arguments)


def main(arguments):
    options = parse(arguments)
    recipes.FOLDER = pathlib.Path(options.recipes)
    rows = [row for name in options.rows for row in recipes.GROUPS.get(name, [name])]
    options.msa = str(pathlib.Path(options.msa).resolve())
    if options.command == "table":
        return study_tables.write(pathlib.Path(options.results), pathlib.Path(options.docs))
    if not rows:
        sys.exit(f"study.py {options.command}: what?")
    if options.command == "prepare":
        options.books = rows[0]
        return prepare(options)
    if options.command == "config":
        seed = int(options.seeds.split(",")[0])
        print(json.dumps(recipes.make_config(rows[0], seed, options.tokens, options.set)[0], indent=1))
        return 0
    options.train = options.command == "run"
    options.ask = options.command == "eval" or options.eval
    return study_run.Runner(options).run(rows, [int(seed) for seed in options.seeds.split(",")])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
