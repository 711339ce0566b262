"""The study's recipes, made small: every row is accepted and trains, and the driver goes from books to tables."""

import json
import random
import shutil
import subprocess
import sys

import pytest
from conftest import PROGRAM, SOURCE

sys.path.insert(0, str(SOURCE / "scripts"))
import study as driver  # noqa: E402
import study_recipes  # noqa: E402
import study_tables  # noqa: E402

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
    if (recipe.get("begin") or {}).get("convert"):
        recipe["begin"]["convert"] = ["--dense-layers", "0", "--block-size", "16", "--topk", "16"]
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
    for command in (["prepare", folder / "text"], ["run", "start", "--eval"]):
        done = study(folder, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not (folder / "results").exists()  # nobody asks it
    return folder


def study(work, *words):
    command = [sys.executable, SOURCE / "scripts/study.py", "--msa", PROGRAM, "--work", work, "--device", "cpu"]
    command += ["--recipes", work / "recipes", "--results", work / "results", "--tokens", "10K", *words]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("row", [row for row in ROWS if row != "msa-converted"])
def test_a_row_is_accepted(msa, work, row):
    path = work / f"{row}.json"
    path.write_text(study(work, "config", row).stdout)
    done = msa("train", path, "--steps", 1, "-q", cwd=work)
    assert done.returncode == 0, done.stderr


def test_shares_become_steps():
    config, origin = study_recipes.make_config("msa-converted", 3, 46e6)
    full, start = study_recipes.make_config("full", 3, 46e6)
    steps = {row: [stage["steps"] for stage in one["stages"]] for row, one in (("full", full), ("converted", config))}
    assert steps == {"full": [190, 133, 39], "converted": [28, 112, 35]}  # of 64K, 64K, 128K tokens
    assert full["checkpoint"]["every"] == 190
    assert start == {"source": "runs/start-s3/step-000604", "convert": None}
    assert origin["source"] == "runs/full-s3/step-000190" and origin["convert"]
    assert full["model"]["init_from"] == start["source"]
    assert config["model"]["init_from"] == "runs/msa-converted-s3/converted"
    assert full["data"] == config["data"] and (full["seed"], config["seed"]) == (1003, 2003)


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
    assert result["tokens"] == 3072
    assert {one["task"] for one in result["eval"]} == {"passkey", "perplexity", "recall"}

    again = study(work, "run", "full")
    assert again.returncode == 0 and "trained in 0 s" in again.stdout


def test_a_run_is_cut_off_and_goes_on(work):
    longer = ["--tokens", "40K"]
    done = study(work, "run", "hybrid", "--minutes", 0.01, *longer)
    assert done.returncode == 130 and "trained" not in done.stdout, done.stdout
    assert not (work / "runs/hybrid-s1/step-000079").exists()
    done = study(work, "run", "hybrid", "lightning", "--eval", "--overlap", *longer)
    assert done.returncode == 0 and "hybrid-s1: trained" in done.stdout, done.stdout
    assert "hybrid-s1: asked in" in done.stdout and "lightning-s1: asked in" in done.stdout
    assert (work / "runs/hybrid-s1/step-000079/config.json").exists()


def test_what_cannot_start_says_so(work):
    done = study(work, "run", "msa-converted", "--seeds", "9")
    assert done.returncode == 1 and "begins with is not there" in done.stdout
    done = study(work, "run", "swa", "--set", "defaults.lr=-1")
    assert done.returncode == 1 and "msa train failed" in done.stdout


def test_ablations_stand_beside_the_same_seeds():
    results = {"full": [{"seed": 1}], "msa": [{"seed": 1}, {"seed": 2}], "msa-topk-8": [{"seed": 2}]}
    assert study_tables.ablations(results) == {"msa": [{"seed": 2}], "msa-topk-8": [{"seed": 2}]}


def test_lengths_are_of_1024_tokens():
    assert [driver.length(text) for text in ("32K", "512")] == [32768, 512]


def test_the_tables_are_of_the_results(tmp_path):
    (tmp_path / "docs").mkdir()
    pages = ["README.md", "docs/quality.md", "docs/claims.md"]
    for page in pages:
        shutil.copy(SOURCE / page, tmp_path / page)
    study_tables.write(SOURCE / "docs/results/study", tmp_path / "docs")
    for page in pages:
        assert (tmp_path / page).read_text() == (SOURCE / page).read_text(), "run scripts/study.py table"


def test_the_claims_are_what_was_measured():
    done = subprocess.run([sys.executable, SOURCE / "scripts/claims.py", "--check"], check=False)
    assert done.returncode == 0, "run scripts/claims.py"
