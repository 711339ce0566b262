"""msa train: a small run from the command line, cut in two, and the model it leaves."""

import json
import pathlib
import struct

import pytest


@pytest.fixture
def recipe(model, tmp_path):
    """A configuration that starts from the small model, and the folder it writes to."""
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("the same words again. " * 300)
    data = {"tokenizer": str(model), "sources": [{"text": str(text), "weight": 1}]}
    config = {
        "output": str(tmp_path / "run"),
        "dtype": "f32",
        "model": {"init_from": str(model)},
        "data": data,
        "validation": {"every": 2, "batches": 1, "data": data},
        "checkpoint": {"keep": 5},
        "defaults": {"step_tokens": 128, "micro_tokens": 128, "length": 128},
        "stages": [
            {"attention": "warmup", "freeze_backbone": True, "steps": 2},
            {"attention": "sparse", "steps": 2, "lr": 1e-3},
        ],
    }
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(config))
    return path, config


def test_a_run_in_two_parts(msa, recipe, tmp_path):
    path, _ = recipe
    first = msa("train", path, "--steps", 3)
    assert first.returncode == 0, first.stderr
    assert first.stdout.decode().strip().endswith("step-000003")
    second = msa("train", path)
    assert second.returncode == 0, second.stderr
    assert b"going on from" in second.stderr
    folder = second.stdout.decode().strip()
    assert folder.endswith("step-000004")

    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert steps[0]["loss"] is None and steps[0]["index_loss"] > 0  # frozen: no language loss
    assert steps[3]["loss"] > 0 and steps[3]["grad_norm"] > 0 and steps[3]["gflops"] > 0
    checks = [line for line in lines if line["kind"] == "validation"]
    assert len(checks) == 2 and all(0 < x <= 1.001 for x in checks[1]["oracle_ratio"])
    assert (tmp_path / "run/curves.svg").read_text().startswith("<svg")

    written = msa("run", folder, "-p", "the same", "-n", 2, "-t", 0)
    assert written.returncode == 0, written.stderr


def test_fresh_refuses_a_started_run(msa, recipe, fails):
    path, _ = recipe
    assert msa("train", path, "--steps", 1, "-q").returncode == 0
    fails(1, "has a checkpoint of step 1", "train", path, "--fresh")


def test_mistakes_are_named(recipe, fails, tmp_path):
    path, config = recipe
    fails(1, "nowhere.json", "train", tmp_path / "nowhere.json")
    config["stages"][1]["atention"] = "sparse"
    path.write_text(json.dumps(config))
    fails(1, 'stages[1].atention = "sparse", is not a key', "train", path)


def fp8(code):
    """E4M3."""
    exponent, mantissa = code >> 3 & 15, code & 7
    value = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -value if code & 128 else value


def read_numbers(folder):
    """Every tensor of a folder, MXFP8 as what it stands for."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        (n,) = struct.unpack("<Q", data[:8])
        for name, one in json.loads(data[8 : 8 + n]).items():
            if name != "__metadata__":
                begin, end = one["data_offsets"]
                tensors[name] = one["dtype"], data[8 + n + begin : 8 + n + end]

    def numbers(name):
        dtype, raw = tensors[name]
        if dtype == "F32":
            return struct.unpack(f"<{len(raw) // 4}f", raw)
        if dtype == "BF16":
            return struct.unpack(f"<{len(raw) // 2}f", b"".join(b"\0\0" + raw[i : i + 2] for i in range(0, len(raw), 2)))
        scales = tensors[name + "_scale_inv"][1]
        return tuple(fp8(code) * 2.0 ** (scales[i // 32] - 127) for i, code in enumerate(raw))

    return {name: numbers(name) for name in tensors if not name.endswith("_scale_inv")}


def test_quantised_weights_are_read_as_what_they_stand_for(msa, recipe, model, tmp_path):
    """A step of length nothing leaves them as they were."""
    path, config = recipe
    quantised = tmp_path / "quantised"
    assert msa("quantize", model, quantised, "--embedding").returncode == 0
    shape = json.loads((quantised / "config.json").read_text())
    shape["id2label"] = {'a "word"': 0}
    (quantised / "config.json").write_text(json.dumps(shape))
    config["model"]["init_from"] = str(quantised)
    config["stages"] = [{"attention": "sparse", "steps": 1, "lr": 0, "index_lr": 0}]
    path.write_text(json.dumps(config))
    done = msa("train", path, "-q")
    assert done.returncode == 0, done.stderr
    trained = pathlib.Path(done.stdout.decode().strip())
    del shape["quantization_config"]
    assert json.loads((trained / "config.json").read_text()) == shape
    before, after = read_numbers(quantised), read_numbers(trained)
    assert before.keys() == after.keys() and len(before) > 20
    assert [name for name in before if before[name] != after[name]] == []
