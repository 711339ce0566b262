"""Dense models of other families through the program: Llama and Qwen3 folders as they are published."""

import json
import shutil

import pytest

from conftest import run_msa
from test_logits import load, run_logits

np = pytest.importorskip("numpy")

NAMES = ["llama-a", "qwen3-a"]


@pytest.fixture
def folder(golden, model, tmp_path):
    """folder(name): a golden model with a tokenizer of its 300 ids: the made one, without the last."""

    def make(name):
        copy = tmp_path / name
        shutil.copytree(golden(f"model/{name}"), copy)
        parts = json.loads((model / "tokenizer.json").read_text())
        vocab = parts["model"]["vocab"] = {
            token: i for token, i in parts["model"]["vocab"].items() if i < 300
        }
        merges = [m.split(" ") if isinstance(m, str) else m for m in parts["model"]["merges"]]
        parts["model"]["merges"] = [m for m in merges if "".join(m) in vocab]
        parts["added_tokens"] = []
        (copy / "tokenizer.json").write_text(json.dumps(parts))
        return copy

    return make


@pytest.mark.parametrize("way", [[], ["--chunk", 37], ["--chunk", 64, "--decode-from", 120]])
@pytest.mark.parametrize("name", NAMES)
def test_logits_match_the_golden_model(golden, tmp_path, name, way):
    source = golden(f"model/{name}")
    expected = load(source / "golden.safetensors")
    out = tmp_path / "out.safetensors"
    got = run_logits(source, expected["input_ids"], out, "--layers", *way)
    for key, value in expected.items():
        if key == "logits" or key.endswith(".output"):
            assert np.abs(got[key] - value).max() <= 1e-4 * np.abs(value).max(), key
    assert not [key for key in got if key.endswith(".selected_blocks")]


@pytest.mark.parametrize("name", NAMES)
def test_inspect(golden, name):
    source = golden(f"model/{name}")
    result = run_msa("inspect", source, "--json", "--verify")
    assert result.returncode == 0, result.stderr.decode()
    said = json.loads(result.stdout)
    config = json.loads((source / "config.json").read_text())
    assert said["architecture"] == config["architectures"][0]
    assert (said["layers"], said["msa_layers"]) == (3, 0)
    assert said["head_dim"] == config["head_dim"]
    assert said["weight_bytes"] == 2 * said["parameters"]
    assert b"MSA" not in run_msa("inspect", source).stdout


@pytest.mark.parametrize("name", NAMES)
def test_run_generates(folder, name):
    words = ["run", folder(name), "-p", "Once upon a time", "-n", 4, "--ignore-stop", "-t", 0]
    result = run_msa(*words, "-q")
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout


@pytest.mark.parametrize("words", [["run", "-p", "Hi", "--chat"], ["chat"], ["render"]])
def test_chat_is_refused_where_the_template_is_not_known(fails, folder, words):
    command, *options = words
    fails(1, 'model_type = "llama", must be a MiniMax-M3 model', command, folder("llama-a"), *options)
