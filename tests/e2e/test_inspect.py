"""msa inspect and msa make-model."""

import json
import shutil

import pytest


def test_inspect_describes_the_model(msa, model):
    result = msa("inspect", model)
    text = result.stdout.decode()
    assert result.returncode == 0 and not result.stderr
    for word in ("architecture", "layers", "MSA", "parameters", "per 1024 tokens", "fits into"):
        assert word in text


def test_inspect_json_agrees_with_the_config(msa, model):
    data = json.loads(msa("inspect", model, "--json").stdout)
    config = json.loads((model / "config.json").read_text())
    config = config.get("text_config", config)
    assert data["layers"] == config["num_hidden_layers"]
    assert data["hidden_size"] == config["hidden_size"]
    assert data["msa_layers"] == sum(config["sparse_attention_config"]["sparse_attention_freq"])
    heads = data["layers"] * data["kv_heads"] * data["head_dim"] * 2
    index = data["msa_layers"] * data["index_dim"]
    assert data["cache_bytes_per_token"]["bf16"] == 2 * (heads + index)
    assert data["cache_bytes_per_token"]["fp8"] == heads + index


def test_inspect_counts_what_every_kind_of_layer_keeps(msa, tmp_path):
    kinds = ["full_attention", "dsa", "dsa", "lightning", "lightning", "lightning", "moba", "sliding_attention"]
    config = {"architectures": ["MiniMaxM3SparseForCausalLM"], "hidden_size": 64, "num_hidden_layers": 8,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64,
              "max_position_embeddings": 4096, "rms_norm_eps": 1e-06, "rope_theta": 10000, "rotary_dim": 8,
              "partial_rotary_factor": 0.5, "hidden_act": "swigluoai", "swiglu_alpha": 1.702, "swiglu_limit": 7.0,
              "dense_intermediate_size": 64, "mlp_layer_types": ["dense"] * 8, "layer_types": kinds,
              "index_block_size": 16, "dsa_index_heads": 3, "dsa_index_dim": 32, "dsa_topk": 12,
              "moba_block_size": 16, "moba_topk": 2, "sliding_window": 24, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    data = json.loads(msa("inspect", tmp_path, "--json").stdout)
    row, means = 2 * 16, 2 * 16 * 4 // 16
    assert data["cache_bytes_per_token"]["bf16"] == 5 * 2 * row * 2 + 2 * 32 * 2 + means
    assert data["state_bytes"] == 2 * 3 * 4 * 16 * 16 * 4  # two of every head, f32
    assert b"states           24.0 KiB a session" in msa("inspect", tmp_path).stdout


def test_inspect_works_on_a_config_alone(msa, model, tmp_path):
    shutil.copy(model / "config.json", tmp_path)
    result = msa("inspect", tmp_path)
    assert result.returncode == 0
    assert b"no weights in this folder" in result.stderr
    assert b"parameters" in result.stdout


def test_inspect_verify_accepts_finite_weights(msa, model):
    result = msa("inspect", model, "--verify")
    assert result.returncode == 0
    assert b"every weight is finite" in result.stderr


def test_inspect_verify_names_a_nan(fails, model, tmp_path):
    folder = tmp_path / "bad"
    shutil.copytree(model, folder)
    weights = sorted(folder.glob("*.safetensors"))[-1]
    data = bytearray(weights.read_bytes())
    header = int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8 : 8 + header])
    tensors.pop("__metadata__", None)
    name, tensor = next((n, t) for n, t in tensors.items() if t["dtype"] == "BF16")
    at = 8 + header + tensor["data_offsets"][0]
    data[at : at + 2] = b"\xc0\x7f"
    weights.write_bytes(data)
    message = fails(1, name, "inspect", folder, "--verify")
    assert weights.name in message


def test_inspect_of_nothing_names_the_file(fails, tmp_path):
    fails(1, "config.json: No such file or directory", "inspect", tmp_path / "missing")
    fails(2, "MODEL is missing", "inspect")
    fails(2, 'unexpected argument "b"', "inspect", "a", "b")


@pytest.mark.parametrize("size", [0, 4, 100])
def test_inspect_of_a_truncated_checkpoint_fails(fails, model, tmp_path, size):
    folder = tmp_path / "cut"
    shutil.copytree(model, folder)
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:size])
    assert weights.name in fails(1, "msa inspect", "inspect", folder)


def test_make_model_help_lists_presets(msa):
    text = msa("make-model", "--help").stdout.decode()
    presets = text.split("Presets:\n")[1].split("\n\n")[0]
    assert "tiny" in presets and "small" in presets


def test_make_model_is_the_same_for_the_same_seed(msa, model, tmp_path):
    for seed, same in ((1, True), (2, False)):
        folder = tmp_path / str(seed)
        result = msa("make-model", folder, "--preset", "tiny", "--seed", seed)
        assert result.returncode == 0 and not result.stdout
        names = sorted(p.name for p in model.iterdir())
        assert names == sorted(p.name for p in folder.iterdir())
        equal = all((model / n).read_bytes() == (folder / n).read_bytes() for n in names)
        assert equal == same


def test_make_model_keeps_a_full_folder(msa, fails, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    fails(1, "is not empty", "make-model", tmp_path, "--preset", "tiny")
    assert msa("make-model", tmp_path, "--preset", "tiny", "--force").returncode == 0
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_make_model_rejects_what_it_does_not_know(fails, tmp_path):
    assert "tiny" in fails(1, "enormous", "make-model", tmp_path / "x", "--preset", "enormous")
    fails(2, '--seed = "abc", must be a whole number', "make-model", tmp_path / "x", "--seed", "abc")
    fails(1, "/proc/msa", "make-model", "/proc/msa/x", "--preset", "tiny")
