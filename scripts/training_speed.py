"""The speed of training: steps of msa train as recipes/speed says, and one attention layer of each model.

    training_speed.py            measure; --csv gets the rows, docs/training.md the tables
    training_speed.py --tables   only the tables, from rows measured before

A run is ended as soon as its steps are in the log, so no checkpoint is written. Text is made up: what it says does not
change the work, and one document fills every row, so that a row of 32K has 32K tokens that see each other.
"""

import argparse
import csv
import ctypes
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

import study_recipes
import study_run
import study_tables

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLUMNS = ["commit", "machine", "model", "what", "tokens", "runs", "ms", "ms_p10", "ms_p90", "tokens_s", "tflop_s",
           "mfu", "command"]
PEAK_TFLOPS = 990  # dense bf16 of an H100 or H200


class Failed(Exception):
    """What the program said."""


def quantile(values, fraction):
    return sorted(values)[round(fraction * (len(values) - 1))]


def write_text(folder, n_words):
    """One document of words that do not exist."""
    draw = random.Random(1)
    syllables = [a + b for a in "bdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(20000)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(" ".join(draw.choices(words, k=n_words)), encoding="utf-8")


def make_config(recipe):
    """A configuration of msa train, paths below the working folder."""
    model = {"config": study_recipes.read_row(recipe["model_of"])["model"]["config"]} if "model_of" in recipe else None
    return {
        "output": "run",
        "seed": 1,
        "model": model or recipe["model"],
        "data": {"tokenizer": "tokenizer", "cache": "tokens", "sources": [{"text": "text"}]},
        "router": {"bias_rate": 0.01},
        "log": {"every": 1, "peak_tflops": PEAK_TFLOPS},
        "checkpoint": {"every": 1000000},
        "defaults": {"lr": 1e-5, "index_lr": 1e-5},  # it is not to learn
        "stages": recipe["stages"],
    }


def read_steps(log):
    """{stage: [line of each step]}"""
    found = {}
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    for line in text.splitlines()[: text.count("\n")]:
        one = json.loads(line)
        if one["kind"] == "step":
            found.setdefault(one["stage"], []).append(one)
    return found


def run_steps(options, work, config):
    """The steps of every stage. The trainer is killed after the last one, before it saves."""
    shutil.rmtree(work / "run", ignore_errors=True)
    last = config["stages"][-1]
    wanted, last["steps"] = last["steps"], last["steps"] + 1
    (work / "train.json").write_text(json.dumps(config), encoding="utf-8")
    command = [options.msa, "train", "train.json", "--device", options.device, "--quiet"]
    with subprocess.Popen(command, cwd=work, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as child:
        while len(read_steps(work / "run/log.jsonl").get(last["name"], [])) < wanted:
            if child.poll() is not None:
                raise Failed(child.stderr.read().strip())
            time.sleep(0.02)
        child.kill()
    last["steps"] = wanted
    return read_steps(work / "run/log.jsonl")


def step_rows(name, config, steps):
    """A row a stage; its first step, which also makes buffers, is left out."""
    for stage in config["stages"]:
        lines = steps[stage["name"]][1 : stage["steps"]]
        ms = [1000 * line["seconds"] for line in lines]
        tflop_s = [line["gflops"] / line["seconds"] / 1000 for line in lines]
        yield {
            "model": name, "what": stage["name"], "tokens": stage["step_tokens"], "runs": len(lines),
            "ms": f"{quantile(ms, 0.5):.2f}", "ms_p10": f"{quantile(ms, 0.1):.2f}", "ms_p90": f"{quantile(ms, 0.9):.2f}",
            "tokens_s": f"{1000 * stage['step_tokens'] / quantile(ms, 0.5):.0f}",
            "tflop_s": f"{quantile(tflop_s, 0.5):.2f}", "mfu": f"{quantile(tflop_s, 0.5) / PEAK_TFLOPS:.4f}",
            "command": f"msa train, recipes/speed/{name}.json",
        }


def layer_rows(options, name, config, context, work):
    """Operators of one attention layer with the model's heads."""
    model = config["model"]["config"]
    words = ["bench", "training", "--context", context, "--q-heads", model["num_attention_heads"], "--kv-heads",
             model["num_key_value_heads"], "--dim", model["head_dim"], "--block", model["index_block_size"], "--topk",
             model["index_topk_blocks"], "--reps", 3, "--device", options.device]
    words = [str(word) for word in words]
    done = subprocess.run([options.msa, *words, "--out", "layer.csv"], cwd=work, check=False, text=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise Failed(done.stderr.strip())
    with open(work / "layer.csv", encoding="utf-8", newline="") as file:
        for one in csv.DictReader(file):
            yield {
                "model": name, "what": f"layer: {one['op']}", "tokens": context, "runs": one["reps"],
                "ms": one["median_ms"], "ms_p10": one["p10_ms"], "ms_p90": one["p90_ms"],
                "tflop_s": one["tflop_s"], "command": f"msa {' '.join(words)}",
            }


def machine(device):
    """What was measured on, and whose products (docs/env.md)."""
    name = study_run.device_name(device)
    if device == "cpu":
        return name
    try:
        ctypes.CDLL(os.environ.get("MSA_CUBLASLT", "libcublasLt.so.13"))
        return f"{name}, large products through cuBLASLt"
    except OSError:
        return f"{name}, own products"


def measure_model(options, path, work):
    """All rows of a recipe."""
    recipe = study_recipes.read_json(path)
    config = make_config(recipe)
    rows = list(step_rows(path.stem, config, run_steps(options, work, config)))
    return rows + list(layer_rows(options, path.stem, config, recipe["layer_context"], work))


def measure(options):
    """Write the rows; how many models failed."""
    commit = options.commit or subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], check=True,
                                              capture_output=True, text=True).stdout.strip()
    about = {"commit": commit, "machine": machine(options.device)}
    rows, n_failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        shutil.copytree(options.tokenizer, work / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
        write_text(work / "text", options.words)
        for path in sorted(pathlib.Path(options.recipes).glob("*.json")):
            begin = time.monotonic()
            try:
                rows += measure_model(options, path, work)
                print(f"{path.stem}: measured in {time.monotonic() - begin:.0f} s", flush=True)
            except Failed as problem:
                print(f"{path.stem}: {problem}", flush=True)
                n_failed += 1
    target = pathlib.Path(options.csv)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**about, **row} for row in rows)
    return n_failed


# ---- tables ----------------------------------------------------------------------------------------------------


def step_table(rows):
    lines = ["| rows | tokens a step | ms (p10 to p90) | tokens/s | TFLOP/s | MFU |", "| --- " * 6 + "|"]
    for row in rows:
        ms = f"{float(row['ms']):.0f} ({float(row['ms_p10']):.0f} to {float(row['ms_p90']):.0f})"
        lines.append(f"| {row['what']} | {int(row['tokens']):,} | {ms} | {float(row['tokens_s']):,.0f} | "
                     f"{float(row['tflop_s']):.0f} | {100 * float(row['mfu']):.1f} % |")
    return "\n".join(lines)


def layer_table(rows):
    lines = ["| one attention layer | ms | TFLOP/s |", "| --- | --- | --- |"]
    ms = {row["what"].removeprefix("layer: "): float(row["ms"]) for row in rows}
    for row in rows:
        lines.append(f"| {row['what'].removeprefix('layer: ')} | {float(row['ms']):.2f} | {float(row['tflop_s']):.0f} |")
    lines.append(f"| dense / msa | {ms['dense'] / ms['msa']:.2f} | |")
    return "\n".join(lines)


def write_tables(options):
    with open(options.csv, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        sys.exit(f"training_speed.py: no rows in {options.csv}")
    parts = [f"{rows[0]['machine']}, commit {rows[0]['commit']}."]
    for name in dict.fromkeys(row["model"] for row in rows):
        recipe = study_recipes.read_json(pathlib.Path(options.recipes) / f"{name}.json")
        steps = [row for row in rows if row["model"] == name and not row["what"].startswith("layer: ")]
        layer = [row for row in rows if row["model"] == name and row["what"].startswith("layer: ")]
        parts.append(f"`{name}`: {recipe['about']}.\n\n{step_table(steps)}")
        parts.append(f"Its attention, one sequence of {int(layer[0]['tokens']):,} tokens:\n\n{layer_table(layer)}")
    print("\n\n".join(parts))
    if options.page:
        study_tables.put(pathlib.Path(options.page), {"speed": "\n\n".join(parts)}, "\n")


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tables", action="store_true", help="measure nothing")
    add("--msa", default=str(ROOT / "build/release/cli/msa"), help="the program")
    add("--device", default="cuda", choices=["cuda", "cpu"])
    add("--recipes", default=str(ROOT / "recipes/speed"), help="folder of what is measured")
    add("--tokenizer", default=str(ROOT / "models/msa-36m"), help="folder of a tokenizer")
    add("--words", type=int, default=5000000, help="of the text; two tokens and a half a word")
    add("--csv", default=str(ROOT / "docs/results/training-speed.csv"), help="the rows")
    add("--page", default=str(ROOT / "docs/training.md"), help="where the tables go; empty: nowhere")
    add("--commit", help="of the program, for the rows; that of this folder unless given")
    options = parser.parse_args(arguments)
    options.msa = str(pathlib.Path(options.msa).resolve())
    n_failed = 0 if options.tables else measure(options)
    write_tables(options)
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
