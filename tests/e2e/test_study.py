"""The study's recipes, made small: every row is accepted and trains, and the driver goes from books to tables."""

import json
import random
import subprocess
import sys

import pytest
from conftest import PROGRAM, SOURCE

sys.path.insert(0, str(SOURCE / "scripts"))
import study_recipes  # noqa: E402

ROWS = study_recipes.GROUPS["all"]
SMALL = {"vocab_size": 512, "hidden_size": 32, "num_attention_heads": 4, "head_dim": 16}
SMALL |= {"dense_intermediate_size": 32}
SMALL |= {"num_local_experts": 2, "intermediate_size": 16, "shared_intermediate_size": 16}
SMALL |= {"index_head_dim": 16, "dsa_index_dim": 16}
TASKS = {"tasks": ["passkey", "single-needle"], "lengths": [512], "haystack": "books/train", "weight": 0.4}


def shrink(recipe):
    """Narrow layers, an eighth of the blocks and windows, sequences of one length."""
    model = recipe.get("model", {}).get("config", {})
    for key in SMALL.keys() & model.keys():
        model[key] = SMALL[key]
    for key in model.keys() & {"index_block_size", "moba_block_size", "sliding_window", "dsa_topk"}:
        model[key] = max(16, model[key] // 8)
    if "defaults" in recipe:
        recipe["defaults"] |= {"step_tokens": 512, "micro_tokens": 512, "length": 512}
        recipe["data"]["sources"] = [{"shards": "shards/train", "copies": [128, 512], "weight": 0.6}, TASKS]
        recipe["validation"]["batches"] = recipe["log"]["every"] = 1
    for stage in recipe.get("stages", []):
        for key in stage.keys() & {"length", "step_tokens", "micro_tokens"}:
            del stage[key]
    if "convert" in recipe:
        recipe["convert"]["options"] = ["--dense-layers", "0", "--block-size", "16", "--topk", "16"]
    return recipe


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A working folder with two small books, and small recipes."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "recipes/study").mkdir(parents=True)
    for path in (SOURCE / "recipes/study").iterdir():
        (folder / "recipes/study" / path.name).write_text(json.dumps(shrink(study_recipes.read_json(path))))
    plan = study_recipes.read_questions()
    plan |= {"tasks": ["passkey"], "count": {"512": 1}, "perplexity": {"512": 1}, "recall": {"512": 1}}
    (folder / "recipes/study-eval.json").write_text(json.dumps(plan))

    words = random.Random(1)
    syllables = ["ba", "lo", "mi", "ter", "sun", "ra", "ke", "don"]
    for part in ("train", "valid"):
        (folder / "text" / part).mkdir(parents=True)
        text = " ".join("".join(words.choices(syllables, k=3)) + words.choice(["", "", "."]) for _ in range(6000))
        (folder / "text" / part / "book.txt").write_text(text)
    done = study(folder, "prepare", folder / "text")
    assert done.returncode == 0, done.stderr
    return folder


def study(work, *words):
    command = [sys.executable, SOURCE / "scripts/study.py", *words, "--msa", PROGRAM, "--work", work]
    command += ["--recipes", work / "recipes", "--results", work / "results", "--device", "cpu", "--tokens", "10K"]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("row", [row for row in ROWS if row != "msa-converted"])
def test_a_row_is_accepted(msa, work, row):
    path = work / f"{row}.json"
    path.write_text(study(work, "config", row).stdout)
    done = msa("train", path, "--steps", 1, "-q", cwd=work)
    assert done.returncode == 0, done.stderr


def test_shares_become_steps():
    config, convert = study_recipes.make_config("msa-converted", 3, 40e6)
    full, _ = study_recipes.make_config("full", 3, 40e6)
    assert [stage["steps"] for stage in full["stages"]] == [427, 189, 134, 37]  # of 32K, 64K, 64K, 128K tokens
    assert full["checkpoint"]["every"] == 427 + 189
    assert convert["source"] == "runs/full-s3/step-000616"
    assert [stage["steps"] for stage in config["stages"]] == [31, 110, 34]
    assert full["data"] == config["data"] and full["seed"] == 3


def test_from_books_to_tables(work, tmp_path):
    done = study(work, "run", "msa-converted", "full", "--eval", "--gpus", 2)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("trained in") == 2 and done.stdout.count("asked in") == 2

    (tmp_path / "docs").mkdir()
    for page in ("docs/quality.md", "docs/claims.md", "README.md"):
        (tmp_path / page).write_text((SOURCE / page).read_text())
    done = study(work, "table", "--docs", tmp_path / "docs")
    assert done.returncode == 0, done.stderr
    for page in ("docs/quality.md", "README.md"):
        for row in ("full", "msa-converted"):
            assert f"| `{row}` | " in (tmp_path / page).read_text()
    assert "<!-- claim 13 -->loss at 32K `full` " in (tmp_path / "docs/claims.md").read_text()
    result = study_recipes.read_json(work / "results/msa-converted-s1.json")
    assert result["tokens"] == 3584
    assert {one["task"] for one in result["eval"]} == {"passkey", "perplexity", "recall"}

    again = study(work, "run", "full")
    assert again.returncode == 0 and "trained in 0 s" in again.stdout


def test_a_run_is_cut_off_and_goes_on(work):
    done = study(work, "run", "swa", "--minutes", 0.01)
    assert done.returncode == 130 and "trained" not in done.stdout, done.stdout
    assert not (work / "runs/swa-s1/step-000019").exists()
    done = study(work, "run", "swa", "moba", "--eval", "--overlap")
    assert done.returncode == 0 and "swa-s1: trained" in done.stdout, done.stdout
    assert "swa-s1: asked in" in done.stdout and "moba-s1: asked in" in done.stdout
    assert (work / "runs/swa-s1/step-000019/config.json").exists()


def test_what_cannot_start_says_so(work):
    done = study(work, "run", "msa-converted", "--seeds", "9")
    assert done.returncode == 1 and "converted from is not there" in done.stdout
    done = study(work, "run", "swa", "--set", "defaults.lr=-1")
    assert done.returncode == 1 and "msa train failed" in done.stdout


def test_the_claims_are_what_was_measured():
    done = subprocess.run([sys.executable, SOURCE / "scripts/claims.py", "--check"], check=False)
    assert done.returncode == 0, "run scripts/claims.py"
