"""A MiniMax-M3 folder as a GGUF file for llama.cpp (Python packages: gguf, numpy).

    python m3_to_gguf.py MODEL OUT.gguf

llama.cpp's own converter wants a tokenizer it knows by its hash; this one writes any M3-shaped model, such
as those of msa make-model: BF16 weights as they are, norms (plus one) and index projections in F32. The
dense layers must be the first ones, and exactly those without sparse attention.
"""

import json
import pathlib
import sys

import gguf
import numpy

ARCH = "minimax-m3"
PLAIN = {  # name within a layer -> GGUF name
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.index_q_proj.weight": "indexer.q_proj.weight",
    "self_attn.index_k_proj.weight": "indexer.k_proj.weight",
    "self_attn.index_q_norm.weight": "indexer.q_norm.weight",
    "self_attn.index_k_norm.weight": "indexer.k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "block_sparse_moe.gate.weight": "ffn_gate_inp.weight",
    "block_sparse_moe.e_score_correction_bias": "exp_probs_b.bias",
    "block_sparse_moe.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "block_sparse_moe.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "block_sparse_moe.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
EXPERTS = {"w1": "ffn_gate_exps.weight", "w3": "ffn_up_exps.weight", "w2": "ffn_down_exps.weight"}


class Tensors:
    """The safetensors files of a folder, mapped."""

    def __init__(self, folder):
        self.entries = {}
        for path in sorted(folder.glob("*.safetensors")):
            data = numpy.memmap(path, dtype=numpy.uint8, mode="r")
            header_bytes = int(data[:8].view("<u8")[0])
            header = json.loads(bytes(data[8:8 + header_bytes]))
            for name, entry in header.items():
                if name != "__metadata__":
                    begin, end = (8 + header_bytes + o for o in entry["data_offsets"])
                    self.entries[name] = (entry["dtype"], entry["shape"], data[begin:end])

    def raw(self, name):
        """BF16 as uint16, F32 as float32."""
        dtype, shape, data = self.entries[name]
        return data.view({"BF16": "<u2", "F32": "<f4"}[dtype]).reshape(shape)

    def f32(self, name):
        raw = self.raw(name)
        if raw.dtype == numpy.float32:
            return raw
        return (raw.astype(numpy.uint32) << 16).view(numpy.float32)


def add(writer, name, array):
    if array.dtype == numpy.float32:
        writer.add_tensor(name, array)
    else:
        writer.add_tensor(name, array.view(numpy.uint8).reshape(*array.shape[:-1], -1),
                          raw_dtype=gguf.GGMLQuantizationType.BF16)


def add_config(writer, config):
    sparse = config["sparse_attention_config"]
    dense = config["moe_layer_freq"].index(1)
    assert all(config["moe_layer_freq"][dense:])
    assert sparse["sparse_attention_freq"] == config["moe_layer_freq"]
    assert not sparse["sparse_init_block"]
    assert config["shared_intermediate_size"] == config["intermediate_size"]
    integers = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["dense_intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "rope.dimension_count": config["rotary_dim"],
        "expert_count": config["num_local_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_feed_forward_length": config["intermediate_size"],
        "expert_gating_func": 2,  # sigmoid
        "leading_dense_block_count": dense,
        "attention.indexer.head_count": sparse["sparse_num_index_heads"],
        "attention.indexer.key_length": sparse["sparse_index_dim"],
        "attention.indexer.top_k": sparse["sparse_topk_blocks"],
        "attention.indexer.block_size": sparse["sparse_block_size"],
        "attention.indexer.local_blocks": sparse["sparse_local_block"],
        "vocab_size": config["vocab_size"],
    }
    for key, value in integers.items():
        writer.add_uint32(f"{ARCH}.{key}", value)
    writer.add_float32(f"{ARCH}.rope.freq_base", config["rope_theta"])
    writer.add_float32(f"{ARCH}.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_float32(f"{ARCH}.expert_weights_scale", config["routed_scaling_factor"])
    writer.add_bool(f"{ARCH}.expert_weights_norm", True)


def convert(folder, out):
    config = json.loads((folder / "config.json").read_text())["text_config"]
    tensors = Tensors(folder)
    writer = gguf.GGUFWriter(out, ARCH)
    writer.add_name(folder.name)
    add_config(writer, config)
    writer.add_tokenizer_model("none")  # timing needs ids only

    prefix = "language_model."
    add(writer, "token_embd.weight", tensors.raw(f"{prefix}model.embed_tokens.weight"))
    add(writer, "output_norm.weight", tensors.f32(f"{prefix}model.norm.weight") + 1)
    add(writer, "output.weight", tensors.raw(f"{prefix}lm_head.weight"))
    for layer in range(config["num_hidden_layers"]):
        base = f"{prefix}model.layers.{layer}."
        for name, new_name in PLAIN.items():
            if base + name not in tensors.entries:
                continue
            array = tensors.raw(base + name)
            if name.endswith("norm.weight"):
                array = tensors.f32(base + name) + 1
            elif "index_" in name:
                array = tensors.f32(base + name)
            add(writer, f"blk.{layer}.{new_name}", array)
        if not config["moe_layer_freq"][layer]:
            continue
        for name, new_name in EXPERTS.items():
            experts = [tensors.raw(f"{base}block_sparse_moe.experts.{e}.{name}.weight")
                       for e in range(config["num_local_experts"])]
            add(writer, f"blk.{layer}.{new_name}", numpy.stack(experts))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    convert(pathlib.Path(sys.argv[1]), sys.argv[2])
