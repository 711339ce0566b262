"""msa eval: the contract of its output, every task, files good and bad."""

import json
import os

import pytest

TASKS = [
    "single-needle",
    "multi-key",
    "multi-value",
    "multi-query",
    "variable-tracking",
    "common-words",
    "frequent-words",
    "passkey",
]


@pytest.fixture(scope="session")
def books(tmp_path_factory):
    """A folder of text files."""
    folder = tmp_path_factory.mktemp("books")
    for name in ("a", "b"):
        lines = [f"This is sentence {i} of book {name}. It has a second one!\n" for i in range(200)]
        (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def results(result):
    assert result.returncode == 0, result.stderr.decode()
    return json.loads(result.stdout)


def test_every_task_at_once(msa, model, books):
    words = ["--task", ",".join([*TASKS, "perplexity"]), "--length", 1024, "--count", 1]
    out = results(msa("eval", model, "--threads", 1, *words, "--seed", 4, "--haystack", books, "--json"))
    assert out["model"] == str(model)
    assert out["attention"] == "sparse" and out["seed"] == 4
    assert [e["task"] for e in out["tasks"]] == [*TASKS, "perplexity"]
    for entry in out["tasks"]:
        assert entry["length"] == 1024 and entry["count"] == 1
        assert 0 <= entry["accuracy"] <= 1
        assert 0 < entry["read_tokens"] < 1024
    by_position = out["tasks"][-1]["by_position"]
    assert [b["from"] for b in by_position] == [2**k for k in range(10)]
    assert sum(b["count"] for b in by_position) == 1023
    assert out["tasks"][-1]["perplexity"] > 1


def test_lengths_and_attention(msa, model):
    words = ["--task", "passkey,multi-key-needles", "--length", "700,1K", "--count", 2, "--json"]
    out = results(msa("eval", model, "--threads", 1, *words, "--attention", "dense"))
    assert out["attention"] == "dense"
    assert [(e["task"], e["length"]) for e in out["tasks"]] == [
        ("passkey", 700),
        ("passkey", 1024),
        ("multi-key-needles", 700),
        ("multi-key-needles", 1024),
    ]
    assert sum(b["count"] for b in out["tasks"][0]["by_depth"]) == 2


def test_table(msa, model, books):
    words = ["--task", "passkey,perplexity", "--text", books, "--length", 600, "--count", 1]
    result = msa("eval", model, "--threads", 1, *words)
    assert result.returncode == 0, result.stderr.decode()
    lines = result.stdout.decode().splitlines()
    assert lines[0].split()[:4] == ["task", "length", "count", "accuracy"]
    assert lines[1].split()[:3] == ["passkey", "600", "1"]
    assert lines[2].split()[0] == "perplexity"
    assert "perplexity" in lines[3] and "tokens before" in lines[4]
    assert "512" in lines[-1]


def test_perplexity_without_a_text(msa, model):
    result = msa("eval", model, "--task", "perplexity", "--length", 64, "--count", 2, "--json")
    (entry,) = results(result)["tasks"]
    assert entry["count"] == 2 and entry["read_tokens"] == 2 * 63
    assert b"made-up sentences" in result.stderr


def test_recall(msa, model, books):
    """On the reference backend, which has every operator."""
    words = ["--task", "recall", "--text", books, "--length", 150, "--count", 1, "--json", "--index8"]
    environment = dict(os.environ, MSA_BACKEND="ref")
    (entry,) = results(msa("eval", model, *words, env=environment))["tasks"]
    assert [layer["layer"] for layer in entry["layers"]] == [1, 2, 3]
    for part in [entry, *entry["layers"]]:
        assert part["rows"] > 0
        assert 0 < part["block_recall"] <= part["block_recall_forced"] <= 1
        assert 0 < part["captured_mass"] < part["oracle_ratio"] <= 1
        assert 0 < part["rescored"] <= part["rescored_max"] <= 1 <= part["rescored_blocks"]
        assert 0 < part["rescored_random"] <= 1 and 0.5 < part["fp8_recall"] <= 1
    assert entry["accuracy"] == entry["block_recall"]


def said_by(msa, model, prompt):
    """Some letters that the model says after a prompt."""
    result = msa("run", model, "-p", prompt, "-n", 100, "-t", 0, "-q")
    assert result.returncode == 0, result.stderr.decode()
    text = result.stdout.decode()
    runs = "".join(c if c.isascii() and c.isalnum() else " " for c in text).split()
    return max(runs, key=len)


def test_ruler_file(msa, model, tmp_path):
    prompt = "The kettle is warm. What is it?"
    word = said_by(msa, model, prompt)
    lines = [
        {"index": 0, "input": prompt, "outputs": [word.upper()], "length": 12},
        {"index": 1, "input": prompt, "outputs": ["never said", word], "task": "niah_single_1"},
        {"index": 2, "input": prompt, "outputs": ["never said"]},
    ]
    file = tmp_path / "validation.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = results(msa("eval", model, "--ruler", file, "--json"))
    (entry,) = out["tasks"]
    assert entry["task"] == str(file) and entry["count"] == 3
    assert entry["accuracy"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "status, text, words",
    [
        (2, "nothing to do", []),
        (2, 'did you mean "single-needle"', ["--task", "passkey,singleneedle"]),
        (2, "unknown task", ["--task", "passkey,"]),
        (2, "--length", ["--task", "passkey", "--length", "1K,x"]),
        (1, "needs", ["--task", "passkey,common-words", "--length", 100]),
        (1, "No such file", ["--task", "passkey", "--haystack", "/nowhere"]),
        (1, "No such file", ["--ruler", "/nowhere.jsonl"]),
        (1, "made for at most", ["--task", "passkey", "--length", "200M"]),
    ],
)
def test_wrong_usage(fails, model, status, text, words):
    fails(status, text, "eval", model, *words)


def test_broken_files(fails, model, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"input": "a", "outputs": ["b"]}\n{"input": "a"}\n')
    fails(1, "t.jsonl:2: outputs is missing", "eval", model, "--ruler", tmp_path / "t.jsonl")
    fails(1, "*.txt", "eval", model, "--task", "passkey", "--haystack", tmp_path)
    (tmp_path / "short.txt").write_text("Only a few words.")
    message = fails(
        1, "length = 4096", "eval", model, "--task", "perplexity", "--text", tmp_path,
        "--length", "4K", "--json",
    )
    assert "the text has only" in message
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    fails(1, "bad.txt: byte 2", "eval", model, "--task", "passkey", "--haystack", tmp_path)
