"""msa logits: the golden models through the program, whole, in chunks and token by token."""

import json
import struct

import pytest

from conftest import needs_gpu, run_msa

np = pytest.importorskip("numpy")

DTYPES = {"F32": np.float32, "I32": np.int32, "I64": np.int64}


def load(path):
    """Tensors of a safetensors file that numpy has a type for."""
    data = path.read_bytes()
    (header_bytes,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + header_bytes])
    header.pop("__metadata__", None)
    tensors = {}
    for name, t in header.items():
        begin, end = (8 + header_bytes + offset for offset in t["data_offsets"])
        if t["dtype"] in DTYPES:
            tensors[name] = np.frombuffer(data[begin:end], DTYPES[t["dtype"]]).reshape(t["shape"])
    return tensors


def run_logits(folder, ids, out, *words):
    tokens = out.with_suffix(".ids")
    tokens.write_text(" ".join(map(str, ids)) + "\n")
    result = run_msa("logits", folder, "--tokens", tokens, "--out", out, *words)
    assert result.returncode == 0, result.stderr.decode()
    assert not result.stdout
    return load(out)


def as_sets(blocks):
    """Sorted rows: the golden list is by score, ours ascending; both padded with -1."""
    return np.sort(np.where(blocks < 0, np.iinfo(np.int32).max, blocks), axis=-1)


WAYS = {
    "whole": [],
    "chunks": ["--chunk", 37],
    "single": ["--chunk", 64, "--decode-from", 120],
}


GPU_WAYS = {f"gpu-{way}": [*words, "--device", "cuda"] for way, words in WAYS.items()}


@pytest.mark.parametrize("way", [*WAYS, *(pytest.param(way, marks=needs_gpu) for way in GPU_WAYS)])
@pytest.mark.parametrize("name", ["tiny-a", "tiny-b", "mxfp8-a"])
def test_logits_match_the_golden_model(golden, tmp_path, name, way):
    folder = golden(f"model/{name}")
    expected = load(folder / "golden.safetensors")
    got = run_logits(
        folder,
        expected["input_ids"],
        tmp_path / "out.safetensors",
        "--layers",
        *{**WAYS, **GPU_WAYS}[way],
    )
    largest = np.abs(expected["logits"]).max()
    assert np.abs(got["logits"] - expected["logits"]).max() <= 1e-4 * largest
    n_sparse = 0
    for key, value in expected.items():
        if key.endswith(".selected_blocks"):
            n_sparse += 1
            assert got[key].shape == value.shape
            assert (as_sets(got[key]) == as_sets(value)).all(), key
        elif key.endswith(".output"):
            scale = np.abs(value).max()
            assert np.abs(got[key] - value).max() <= 1e-4 * scale, key
    assert n_sparse > 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_logits_match_the_golden_model_of_m3_shape(golden, tmp_path, device):
    folder = golden("model/tiny-m3shape")
    expected = load(folder / "golden.safetensors")
    got = run_logits(
        folder,
        expected["input_ids"],
        tmp_path / "out.safetensors",
        "--layers",
        "--decode-from",
        2600,
        "--device",
        device,
    )
    rows = len(expected["logits"])
    largest = np.abs(expected["logits"]).max()
    assert np.abs(got["logits"][-rows:] - expected["logits"]).max() <= 1e-4 * largest
    for key, value in expected.items():
        if key.endswith(".selected_blocks"):
            assert (as_sets(got[key]) == as_sets(value)).all(), key


def test_logits_in_bf16_are_another_rounding_of_the_same(golden, tmp_path):
    """How far bf16 may be off is tests/golden's business; here: the option acts, and not wildly."""
    folder = golden("model/tiny-a")
    expected = load(folder / "golden.safetensors")
    got = run_logits(folder, expected["input_ids"], tmp_path / "out.safetensors", "--dtype", "bf16")
    error = np.abs(got["logits"] - expected["logits"])
    assert 0 < error.mean() < 0.02 * np.abs(expected["logits"]).max()


@pytest.mark.parametrize(
    "ids, text",
    [
        (b"", "at least one token"),
        (b"1 2 three", "byte 4"),
        (b"1 -2", "byte 2"),
        (b"1 99999999999999999999", "byte 2"),
        (b"1 100000", "id 1 = 100000"),
    ],
)
def test_logits_rejects_bad_tokens(fails, model, tmp_path, ids, text):
    tokens, out = tmp_path / "ids", tmp_path / "out.safetensors"
    tokens.write_bytes(ids)
    fails(1, text, "logits", model, "--tokens", tokens, "--out", out)
    assert not list(tmp_path.glob("out*"))


def test_logits_needs_its_files(msa, fails, model, tmp_path):
    assert msa("logits", model).returncode == 2
    tokens = tmp_path / "ids"
    tokens.write_text("1 2 3")
    fails(1, "No such file", "logits", model, "--tokens", tmp_path / "no", "--out", tmp_path / "o")
    fails(1, "/no/such", "logits", model, "--tokens", tokens, "--out", "/no/such/folder/out")
