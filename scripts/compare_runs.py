"""Put two runs beside each other: python3 compare_runs.py SPARSE.json DENSE.json (msa run --stats)"""

import json
import sys


def main(sparse_path, dense_path):
    with open(sparse_path, encoding="utf-8") as file:
        sparse = json.load(file)
    with open(dense_path, encoding="utf-8") as file:
        dense = json.load(file)
    rows = [
        ("reading the text", "prompt_seconds", "{:,.2f} s"),
        ("  tokens per second", "prompt_tokens_per_second", "{:,.0f}"),
        ("time to first token", "first_token_seconds", "{:,.2f} s"),
        ("generating", "generate_seconds", "{:,.2f} s"),
        ("  tokens per second", "generated_tokens_per_second", "{:,.1f}"),
    ]
    print(f"{'':24}{'sparse':>16}{'dense':>16}{'ratio':>10}")
    for label, key, form in rows:
        a, b = sparse[key], dense[key]
        faster = (a / b if "per_second" in key else b / a) if a and b else 0
        print(f"{label:24}{form.format(a):>16}{form.format(b):>16}{faster:>9.1f}x")
    for label, key in [("blocks read", "blocks_read"), ("blocks visible", "blocks_visible")]:
        print(f"{label:24}{sparse[key]:>16,}{dense[key]:>16,}")
    print(f"{'cache':24}{sparse['kv_bytes'] / 2**20:>12,.1f} MiB{dense['kv_bytes'] / 2**20:>12,.1f} MiB")

    share = 100 * sparse["blocks_read"] / max(sparse["blocks_visible"], 1)
    faster = dense["prompt_seconds"] / sparse["prompt_seconds"]
    print(
        f"\nWith MSA the model read {share:.1f} % of the visible blocks and took in "
        f"{sparse['prompt_tokens']:,} tokens {faster:.1f} times as fast as with dense attention."
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
