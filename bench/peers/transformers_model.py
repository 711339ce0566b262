"""Hugging Face transformers beside msa on one M3 folder: logits, then speed.

    python transformers_model.py MODEL MSA_PROGRAM [--tokens 300] [--contexts 1024,2048] [--threads 2]

First the logits of random tokens in float32 from both; exit status 1 when a row differs by more than 1e-4
of the largest. A single row can do so without an error on either side: where two blocks at the edge of the
kept ones score the same but for rounding, float32 decides by the order of additions. Then transformers' rates in bfloat16 (eager attention), in the terms of `msa bench model`:
tokens per second of prefill up to a context, and of decode there. Python packages: torch, transformers
(5.17 or later), safetensors, numpy.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLForCausalLM

RENAMES = [
    (r"^language_model\.", ""),
    (r"\.block_sparse_moe\.e_score_correction_bias", ".mlp.gate.e_score_correction_bias"),
    (r"\.block_sparse_moe\.", ".mlp."),
    (r"\.self_attn\.index_(\w)_", r".self_attn.indexer.\1_"),
]


def read_weights(folder, n_experts):
    """The folder's tensors under transformers' names; gate and up fused, experts stacked."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            for pattern, replacement in RENAMES:
                name = re.sub(pattern, replacement, name)
            tensors[name] = tensor
    for name in [n for n in tensors if n.endswith(".gate_proj.weight")]:
        up = tensors.pop(name.replace(".gate_proj.", ".up_proj."))
        fused = name.replace(".gate_proj.", ".gate_up_proj.")
        tensors[fused] = torch.cat([tensors.pop(name), up])
    for name in [n for n in tensors if n.endswith(".experts.0.w1.weight")]:
        base = name[:-len("0.w1.weight")]
        w1, w2, w3 = ([tensors.pop(f"{base}{e}.{w}.weight") for e in range(n_experts)]
                      for w in ("w1", "w2", "w3"))
        tensors[base + "gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(w1, w3)])
        tensors[base + "down_proj"] = torch.stack(w2)
    return tensors


def build(folder):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    known = MiniMaxM3VLTextConfig().to_dict()
    config = MiniMaxM3VLTextConfig(
        **{key: value for key, value in text.items() if key in known},
        sparse_attention_config=text["sparse_attention_config"],
        moe_layer_freq=text["moe_layer_freq"], bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": float(text["rope_theta"]),
                         "partial_rotary_factor": text["rotary_dim"] / text["head_dim"]})
    config._attn_implementation = "eager"
    model = MiniMaxM3VLForCausalLM(config).eval()
    model.load_state_dict(read_weights(folder, text["num_local_experts"]))  # all names must match
    return model


def compare_logits(model, folder, program, n_tokens):
    ids = numpy.random.default_rng(1).integers(0, model.config.vocab_size, n_tokens)
    with torch.no_grad():
        expected = model(torch.tensor(ids)[None], use_cache=False).logits[0].numpy()
    with tempfile.TemporaryDirectory() as scratch:
        tokens, out = pathlib.Path(scratch, "tokens"), pathlib.Path(scratch, "logits.safetensors")
        tokens.write_text(" ".join(map(str, ids)))
        subprocess.run([program, "logits", folder, "--tokens", tokens, "--out", out, "--dtype", "f32"],
                       check=True, stderr=subprocess.DEVNULL)
        mine = load_numpy(out)["logits"]
    largest = numpy.abs(expected).max()
    differences = numpy.abs(mine - expected).max(-1)
    difference = differences.max()
    beyond = numpy.flatnonzero(differences > 1e-4 * largest)
    same = (mine.argmax(-1) == expected.argmax(-1)).sum()
    print(f"logits of {n_tokens} tokens in float32: largest {largest:.4f}, largest difference "
          f"{difference:.2e} ({difference / largest:.1e} of it), median of the rows "
          f"{numpy.median(differences):.1e}, same best token in {same}; rows beyond 1e-4 of the largest: "
          f"{beyond[:10].tolist() or 'none'}")
    return not len(beyond)


def measure(model, contexts, n_decoded):
    ids = torch.randint(0, model.config.vocab_size, (1, max(contexts) + n_decoded))
    print("context  prefill tokens/s  decode tokens/s  (transformers, bfloat16)")
    for context in contexts:
        with torch.no_grad():
            begin = time.perf_counter()
            cache = model(ids[:, :context], use_cache=True, logits_to_keep=1).past_key_values
            middle = time.perf_counter()
            for i in range(context, context + n_decoded):
                model(ids[:, i:i + 1], past_key_values=cache, use_cache=True)
            end = time.perf_counter()
        print(f"{context:7d}  {context / (middle - begin):16.1f}  {n_decoded / (end - middle):15.1f}",
              flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("program")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--contexts", default="1024,2048")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    model = build(arguments.model)
    equal = compare_logits(model, arguments.model, arguments.program, arguments.tokens)
    contexts = [int(c) for c in arguments.contexts.split(",") if c]
    if contexts:
        measure(model.bfloat16(), contexts, 16)
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
