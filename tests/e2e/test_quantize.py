"""msa quantize: a smaller folder that says nearly the same, and what it says when it cannot."""

import json

import pytest
from conftest import run_msa
from test_logits import run_logits

np = pytest.importorskip("numpy")


@pytest.fixture
def source(tmp_path):
    assert run_msa("make-model", tmp_path / "source", "--preset", "tiny").returncode == 0
    return tmp_path / "source"


def folder_bytes(folder):
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_a_quantised_model_is_smaller_and_near(source, tmp_path):
    out = tmp_path / "out"
    done = run_msa("quantize", source, out, "--embedding", "--keep", "index_q_proj,index_k_proj")
    assert done.returncode == 0, done.stderr.decode()
    assert folder_bytes(out) < 0.7 * folder_bytes(source)
    rows = {line.split("  ")[0]: line.split() for line in done.stdout.decode().splitlines()}
    assert rows["attention"][1:3] == ["16", "0"] and 0.02 < float(rows["attention"][-1]) < 0.04
    assert rows["index branch"][2:4] == ["0", "6"] and rows["index branch"][-1] == "-"
    assert "bytes of weights became" in done.stderr.decode()

    method = json.loads((out / "config.json").read_text())["quantization_config"]
    assert method["quant_method"] == "mxfp8" and "index_q_proj" in method["ignored_layers"]
    tokens = np.arange(40, dtype=np.int32)
    logits = [run_logits(folder, tokens, tmp_path / "logits.safetensors")["logits"] for folder in (source, out)]
    difference = np.sqrt(((logits[0] - logits[1]) ** 2).mean() / (logits[0] ** 2).mean())
    assert 0.001 < difference < 0.2


def test_refusals(source, tmp_path):
    out = tmp_path / "out"
    done = run_msa("quantize", source, out, "--keep", "index_q_proj,,")
    assert done.returncode == 1 and b"keep[1] = , must name a matrix of the model" in done.stderr
    assert not out.exists()
    assert run_msa("quantize", source, out).returncode == 0
    done = run_msa("quantize", source, out)
    assert done.returncode == 1 and b"must be empty or not exist" in done.stderr
    done = run_msa("quantize", out, tmp_path / "again")
    assert done.returncode == 1 and b"has MXFP8 weights already" in done.stderr
    assert run_msa("quantize", source).returncode == 2
