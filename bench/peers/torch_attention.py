"""PyTorch's CPU attention beside msa on one prefill chunk of M3's shape, in one run.

    python torch_attention.py MSA_PROGRAM [--context 8192] [--tokens 512] [--threads 2] [--no-flex]

Dense: scaled_dot_product_attention with the causal part of the chunk as a mask. Sparse: the same with a
mask of random selected blocks, which is what a user without sparse kernels runs, and FlexAttention with a
block mask where torch.compile can build it. msa's times come from `msa bench attention` on the same shape.
MSA has a selection per token and KV group; the masks here have one too. Python packages: torch, numpy.
"""

import argparse
import csv
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

HQ, HKV, D, BK, K = 64, 4, 128, 128, 16


def selected(tokens, context):
    """[HKV, tokens, blocks] bool: 15 random visible blocks and the local one."""
    first = context - tokens
    rows = torch.zeros(HKV, tokens, context // BK, dtype=torch.bool)
    for t in range(tokens):
        local = (first + t) // BK
        for g in range(HKV):
            rows[g, t, torch.randperm(local)[:K - 1]] = True
            rows[g, t, local] = True
    return rows


def median_ms(run, repetitions=3):
    run()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def torch_times(tokens, context, with_flex):
    q = torch.randn(1, HQ, tokens, D).bfloat16()
    k, v = (torch.randn(1, HKV, context, D).bfloat16() for _ in range(2))
    rows = selected(tokens, context)
    position = torch.arange(context - tokens, context)
    causal = position[:, None] >= torch.arange(context)[None, :]
    mask = (rows.repeat_interleave(BK, 2) & causal).repeat_interleave(HQ // HKV, 0)[None]
    times = {
        "torch sdpa, dense": median_ms(
            lambda: scaled_dot_product_attention(q, k, v, attn_mask=causal, enable_gqa=True)),
        "torch sdpa, block mask": median_ms(
            lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)),
    }
    if with_flex:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def visible(b, h, i, j):
            return rows[h // (HQ // HKV), i, j // BK] & (j <= i + context - tokens)

        try:
            block_mask = create_block_mask(visible, 1, HQ, tokens, context, device="cpu")
            compiled = torch.compile(flex_attention)
            times["torch FlexAttention"] = median_ms(
                lambda: compiled(q, k, v, block_mask=block_mask, enable_gqa=True))
        except Exception as error:  # torch.compile needs a C++ compiler and supports few CPUs
            print(f"torch FlexAttention did not run: {str(error).splitlines()[0]}")
    return times


def msa_times(program, tokens, context, threads):
    case = {"case": "chunk", "phase": "prefill", "q_lens": [tokens], "kv_lens": [context],
            "n_q_heads": HQ, "n_kv_heads": HKV, "head_dim": D, "index_dim": D, "block": BK,
            "topk": K, "dtype": "bf16"}
    with tempfile.TemporaryDirectory() as folder:
        cases, out = pathlib.Path(folder, "cases.jsonl"), pathlib.Path(folder, "out.csv")
        cases.write_text(json.dumps(case) + "\n")
        subprocess.run([program, "bench", "attention", "--cases", cases, "--out", out, "--threads",
                        str(threads)], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        with open(out, newline="") as file:
            return {f"msa, {row['op']}": float(row["median_us"]) / 1e3
                    for row in csv.DictReader(file)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-flex", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    times = msa_times(args.program, args.tokens, args.context, args.threads)
    times.update(torch_times(args.tokens, args.context, not args.no_flex))
    print(f"torch {torch.__version__}, {args.threads} threads, {args.tokens} tokens before "
          f"{args.context}, bf16")
    for name, ms in times.items():
        print(f"{name:24} {ms:10.1f} ms   {ms / times['msa, msa']:7.1f} of msa's sparse total")


if __name__ == "__main__":
    main()
