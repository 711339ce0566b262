"""msa convert: from a dense folder to a sparse one with a report, and what it says when it cannot."""

import json
import signal
import subprocess
import time

import pytest

from conftest import PROGRAM, run_msa
from test_families import folder  # noqa: F401  (a fixture)
from test_logits import load, run_logits

np = pytest.importorskip("numpy")

NAMES = ["Anna", "Boris", "Clara", "David", "Elena", "Felix"]


def make_text(n, seed):
    """Sentences in which names come back with their numbers."""
    lines = []
    for i in range(n):
        a, b = (i * 7 + seed) % 6, (i * 5 + i // 6 + seed) % 6
        lines.append(f"{NAMES[a]} {111 * a + seed} met {NAMES[b]} {111 * b + seed}.\n")
    return "".join(lines)


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "train.txt").write_text(make_text(600, 3))
    (tmp_path / "valid.txt").write_text(make_text(200, 4))
    return ["--text", tmp_path / "train.txt", "--valid", tmp_path / "valid.txt"]


UNTRAINED = ["--steps", 0, "--sparse-steps", 0]
SMALL = ["--block-size", 16, "--topk", 2, "--length", 128, "--step-tokens", 256, "--dtype", "f32",
         "--windows", 2, "--needles", 0]


def convert_ok(*words):
    result = run_msa("convert", *words)
    assert result.returncode == 0, result.stderr.decode()
    return result


@pytest.mark.parametrize("name", ["llama-a", "qwen3-a"])
def test_untrained_conversion_computes_what_the_dense_model_does(golden, tmp_path, name):
    source = golden(f"model/{name}")
    expected = load(source / "golden.safetensors")
    convert_ok(source, tmp_path / "out", *UNTRAINED)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"].startswith("msa_")
    assert config["layer_types"] == ["full_attention"] + 2 * ["minimax_m3_sparse"]
    one = run_logits(source, expected["input_ids"], tmp_path / "dense.safetensors")
    two = run_logits(tmp_path / "out", expected["input_ids"], tmp_path / "sparse.safetensors")
    assert (one["logits"] == two["logits"]).all()


def test_conversion_with_training(folder, tmp_path, texts):  # noqa: F811
    source, out = folder("qwen3-a"), tmp_path / "out"
    (source / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    words = [source, out, *texts, *SMALL, "--steps", 6, "--sparse-steps", 4]
    result = run_msa("convert", *words)
    if b"does not have this operator" in result.stderr:
        pytest.skip(result.stderr.decode())
    assert result.returncode == 0, result.stderr.decode()
    tables = result.stdout.decode()
    assert "| dense |" in tables and "| untrained |" in tables and "| converted |" in tables
    assert (out / "CONVERSION.md").read_text().endswith(tables)
    report = json.loads((out / "conversion.json").read_text())
    assert [m["model"] for m in report["models"]] == ["dense", "untrained", "converted"]
    layers = report["models"][2]["layers"]
    assert [layer["selects"] for layer in layers] == [False, True, True]
    assert all(0 <= layer["oracle_ratio"] <= 1.000001 for layer in layers if layer["selects"])
    assert report["models"][2]["loss"] > 0 and report["models"][2]["positions"]
    said = json.loads(run_msa("inspect", out, "--json", "--verify").stdout)
    assert (said["architecture"], said["msa_layers"]) == ("MSAQwen3ForCausalLM", 2)
    # Once more: nothing is left to train, the report is measured again.
    assert convert_ok(*words).stdout.decode() == tables


def test_interrupted_conversion_goes_on(folder, tmp_path, texts):  # noqa: F811
    source, out = folder("llama-a"), tmp_path / "out"
    (source / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    words = [source, out, *texts, *SMALL, "--steps", 4000, "--sparse-steps", 0, "--gate", 0]
    process = subprocess.Popen([PROGRAM, "convert", *map(str, words)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    end = time.monotonic() + 30
    while (not (out / "training/log.jsonl").exists() and process.poll() is None
           and time.monotonic() < end):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    talk = process.communicate(timeout=300)[1].decode()
    if "does not have this operator" in talk:
        pytest.skip(talk)
    assert process.returncode == 130, talk
    assert "the same command goes on" in talk
    assert not (out / "config.json").exists()
    assert list((out / "training").glob("step-*/model.safetensors"))
    other = run_msa("convert", *words[:-1], 0.5)
    assert other.returncode == 1 and b"belongs to a conversion with other options" in other.stderr
    log = (out / "training/log.jsonl").read_text()
    process = subprocess.Popen([PROGRAM, "convert", *map(str, words)], stderr=subprocess.PIPE)
    while len((out / "training/log.jsonl").read_text()) <= len(log) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "going on from" in process.communicate(timeout=300)[1].decode()
    assert (out / "training/log.jsonl").read_text().startswith(log)


def test_mistakes_are_named(fails, golden, folder, model, tmp_path, texts):  # noqa: F811
    source = golden("model/llama-a")
    out = tmp_path / "out"
    fails(2, "training needs --text and --valid", "convert", source, out)
    fails(2, '--dense-layers = "1-", must be none', "convert", source, out, *UNTRAINED,
          "--dense-layers", "1-")
    fails(1, "dense_layers = 7, must be in 0..2", "convert", source, out, *UNTRAINED,
          "--dense-layers", "7")
    fails(1, "selects blocks already", "convert", model, out, *UNTRAINED)
    fails(2, "must be a multiple of --length", "convert", source, out, *texts, "--length", 96,
          "--step-tokens", 100)
    fails(1, "the report needs --length 65536", "convert", folder("llama-a"), out, *texts, "--length",
          65536)
    fails(1, "; --needles 0 asks none", "convert", folder("qwen3-a"), out, *texts, "--length", 64,
          "--step-tokens", 128)
    assert not out.exists()
    convert_ok(source, out, *UNTRAINED, "--dense-layers", "0,2")
    fails(1, "must be empty or not exist", "convert", source, out, *UNTRAINED)
