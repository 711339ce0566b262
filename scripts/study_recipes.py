"""Rows of the study as configurations of msa train; see recipes/README.md."""

import json
import pathlib

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "recipes"
MAIN = ["start", "full", "msa", "msa-converted", "swa", "hybrid", "window-control", "moba", "dsa", "lightning"]
ABLATIONS = ["msa-no-stop-gradient", "msa-no-warmup", "msa-no-local", "msa-block-32", "msa-block-64", "msa-topk-8",
             "msa-topk-32"]
NOT_ASKED = ["start"]
GROUPS = {"main": MAIN, "ablations": ABLATIONS, "all": MAIN + ABLATIONS}


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def merge(base, change):
    """Objects key by key; everything else is replaced."""
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    return {**base, **{key: merge(base.get(key), value) for key, value in change.items()}}


def read_row(row):
    """A row's recipe, merged over what it extends."""
    recipe = read_json(FOLDER / "study" / f"{row}.json")
    parent = recipe.pop("extends", None if row == "base" else "base")
    return merge(read_row(parent), recipe) if parent else recipe


def read_questions():
    return read_json(FOLDER / "study-eval.json")


def selects(row):
    kinds = {"minimax_m3_sparse", "dsa", "moba", "window_control"}
    return not kinds.isdisjoint(read_row(row)["model"]["config"]["layer_types"])


def run_name(row, seed):
    return f"{row}-s{seed}"


def change_setting(config, setting):
    """The configuration with one value replaced: "defaults.lr=0.0005"."""
    key, value = setting.split("=", 1)
    change = json.loads(value)
    for part in reversed(key.split(".")):
        change = {part: change}
    return merge(config, change)


def make_stage(stage, defaults, tokens):
    """Shares of the run's tokens become steps."""
    each = stage.get("step_tokens", defaults["step_tokens"])
    stage = dict(stage, steps=max(1, round(stage["part"] * tokens / each)))
    del stage["part"]
    if "warmup_part" in stage:
        stage["warmup_steps"] = max(1, round(stage.pop("warmup_part") * tokens / each))
    return stage


def steps_until(stages, name):
    """Steps of a run when the stage of this name ends."""
    last = next(i for i, stage in enumerate(stages) if stage["name"] == name)
    return sum(stage["steps"] for stage in stages[: last + 1])


def make_config(row, seed, tokens, settings=()):
    """(configuration of msa train, its origin or None), paths below the working folder.

    An origin is {"source": checkpoint of another row, "convert": options of msa convert or None}.
    """
    recipe = read_row(row)
    for setting in settings:
        recipe = change_setting(recipe, setting)
    begin = recipe.pop("begin", None)
    del recipe["about"]
    stages = [make_stage(stage, recipe["defaults"], tokens) for stage in recipe["stages"]]
    output = f"runs/{run_name(row, seed)}"
    config = {**recipe, "output": output, "seed": seed, "stages": stages}
    n_steps = sum(stage["steps"] for stage in stages)
    config["validation"] = {"every": max(1, n_steps // 12), **recipe["validation"]}
    names = [stage["name"] for stage in stages]
    config["checkpoint"] = {"every": steps_until(stages, "8K") if "8K" in names else n_steps, "keep": 3}
    if not begin:
        return config, None
    before = make_config(begin["row"], seed, tokens, settings)[0]
    source = f"{before['output']}/step-{steps_until(before['stages'], begin['after']):06d}"
    convert = begin.get("convert")
    config["seed"] = before["seed"] + 1000  # other batches than those of the source
    config["model"] = {**recipe["model"], "init_from": f"{output}/converted" if convert else source}
    return config, {"source": source, "convert": convert}
