"""The figures of docs/claims.md, from formulas and from bench/results: python3 scripts/claims.py [--check]

Rewrites the tables between the marks of docs/claims.md; --check fails when that changes anything.
Ratios of time are medians over medians. A whole prompt is the sum of its chunks of 8,192 tokens; chunks that
were not measured lie on straight lines between those that were.
"""

import csv
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
LENGTHS = [8192, 32768, 131072, 524288, 1048576]
CHUNK = 8192
HQ, HKV, D, DI, KEPT, BYTES = 64, 4, 128, 128, 2048, 2  # M3's layer, bf16
M2_HQ, M2_HKV = 48, 8


# ---- formulas, docs/math.md (M20)-(M24) ----------------------------------------------------------------------


def dense_flops(s, hq=HQ):
    """Of a whole prompt."""
    return 2 * hq * D * s * s


def msa_flops(s):
    return HKV * DI * s * s + 4 * HQ * D * s * KEPT


def dense_bytes(s, hkv=HKV):
    """That one decoded token reads."""
    return 2 * hkv * D * BYTES * s


def msa_bytes(s, index_bytes=BYTES):
    return DI * index_bytes * s + 2 * HKV * D * BYTES * KEPT


def count_m2():
    """(all, at work for a token without the vocabulary, one vocabulary matrix) of MiniMax-M2's configuration."""
    layers, hidden, vocabulary, experts, active, width = 62, 3072, 200064, 256, 8, 1536
    expert = 3 * hidden * width
    attention = hidden * D * (2 * M2_HQ + 2 * M2_HKV)
    rest = attention + hidden * experts
    table = vocabulary * hidden
    return layers * (experts * expert + rest) + 2 * table, layers * (active * expert + rest), table


# ---- measurements ------------------------------------------------------------------------------------------


def read_csv(name):
    with open(RESULTS / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def median(rows, op, case, key="op"):
    """Seconds of a case, or None."""
    found = [float(row["median_us"]) for row in rows if row[key] == op and row["case"] == case]
    return found[0] * 1e-6 if found else None


def label(s):
    return f"{s // 1024}K"


def chunk_times(rows, op, key="op"):
    """{context: seconds} of the chunks of 8,192 tokens that end there."""
    found = {s: median(rows, op, f"chunk-at-{label(s)}", key) for s in (CHUNK << i for i in range(8))}
    return {s: seconds for s, seconds in found.items() if seconds}


def at(times, s):
    below = max(x for x in times if x <= s)
    above = min(x for x in times if x >= s)
    part = (s - below) / (above - below) if above > below else 0
    return times[below] + part * (times[above] - times[below])


def whole_prompt(times, s):
    return sum(at(times, end) for end in range(CHUNK, s + 1, CHUNK))


def fit(times):
    """a, b of a + b S, least squares."""
    n, xs, ys = len(times), list(times), list(times.values())
    mx, my = sum(xs) / n, sum(ys) / n
    b = sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / sum((x - mx) ** 2 for x in xs)
    return my - b * mx, b


# ---- tables ------------------------------------------------------------------------------------------------


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def duration(seconds):
    return (f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms" if seconds >= 1e-3
            else f"{1e6 * seconds:.0f} µs")


def ratio(a, b):
    return f"{a / b:.1f}" if a and b else "–"


def prefill_table(hopper, peers, gemm):
    dense, msa = chunk_times(hopper, "dense"), chunk_times(hopper, "msa")
    cudnn = chunk_times(peers, "sdpa-cudnn", "peer")
    rows = []
    for s in LENGTHS:
        flops = 4 * HQ * D * CHUNK * (s - CHUNK / 2)
        rows.append([f"{s:,}", ratio(dense_flops(s), msa_flops(s)), duration(whole_prompt(dense, s)),
                     duration(whole_prompt(msa, s)), ratio(whole_prompt(dense, s), whole_prompt(msa, s)),
                     f"{100 * flops / dense[s] / gemm:.0f} %", ratio(dense[s], msa[s]), ratio(cudnn.get(s), msa[s])])
    head = ["context", "FLOPs, whole prompt", "dense", "MSA", "time, whole prompt", "dense, of the product rate",
            "time, last chunk", "cuDNN / MSA, last chunk"]
    return table(head, rows)


def decode_table(hopper, peers, copy):
    rows = []
    for s in LENGTHS:
        dense, msa = (median(hopper, op, f"step-at-{label(s)}") for op in ("dense", "msa"))
        cudnn = median(peers, "sdpa-cudnn", f"step-at-{label(s)}", "peer")
        rows.append([f"{s:,}", "1", f"{dense_bytes(s) / msa_bytes(s):.2f}", duration(dense), duration(msa),
                     ratio(dense, msa), f"{100 * dense_bytes(s) / dense / copy:.0f} %",
                     ratio(cudnn, msa)])
    for s, batch in ((131072, 16), (131072, 64), (1048576, 16)):
        case = f"decode-{'1M' if s == 1048576 else label(s)}-batch-{batch}"
        dense, msa = (median(hopper, op, case) for op in ("dense", "msa"))
        rows.append([f"{s:,}", str(batch), f"{dense_bytes(s) / msa_bytes(s):.2f}", duration(dense), duration(msa),
                     ratio(dense, msa), f"{100 * batch * dense_bytes(s) / dense / copy:.0f} %",
                     "–"])
    head = ["context", "batch", "bytes", "dense", "MSA", "time", "dense, of the copy rate", "cuDNN / MSA"]
    return table(head, rows)


def m2_table(rows):
    body = []
    for phase, short in (("decode", "one token"), ("chunk", "512 tokens")):
        for k in (32, 128, 512):
            m2, msa = median(rows, "dense", f"m2-{phase}-{k}k"), median(rows, "msa", f"m3-{phase}-{k}k")
            if not m2:
                continue
            s = 1024 * k
            work = dense_bytes(s, M2_HKV) / msa_bytes(s)
            if phase == "chunk":
                seen = 512 * (s - 256)
                work = 4 * M2_HQ * D * seen / (2 * HKV * DI * seen + 4 * HQ * D * KEPT * 512)
            body.append([f"{short} at {k}K", duration(m2), duration(msa), ratio(m2, msa), f"{work:.1f}"])
    return table(["one layer, CPU", "dense, 48/8", "MSA, 64/4", "time", "bytes or FLOPs"], body)


def growth_table(hopper):
    rows = []
    for op in ("dense", "msa"):
        a, b = fit(chunk_times(hopper, op))
        rows.append([op, f"{1e3 * a:.2f} ms", f"{1e3 * b * 2**20:.1f} ms"])
    return table(["8,192 tokens at context S, H200", "fixed", "for each 1M of S"], rows)


def make_tables():
    hopper, peers = read_csv("attention-hopper.csv"), read_csv("peers-hopper.csv")
    machine = read_csv("model-1b-h200.csv")
    gemm = 1e12 * float(machine[0]["product_tflop_s"])
    copy = 1e9 * max(float(row["read_gbytes_s"]) for row in machine)
    everything, active, vocabulary = count_m2()
    s = LENGTHS[-1]
    facts = [
        ["FLOPs, dense 64/4 over MSA, whole prompt of 2^20", f"{dense_flops(s) / msa_flops(s):.2f}"],
        ["FLOPs, dense 48/8 over MSA, whole prompt of 2^20", f"{dense_flops(s, M2_HQ) / msa_flops(s):.2f}"],
        ["decode bytes, dense 64/4 over MSA at 2^20, index keys of 16 bits; of 8",
         f"{dense_bytes(s) / msa_bytes(s):.2f}; {dense_bytes(s) / msa_bytes(s, 1):.2f}"],
        ["decode bytes, dense 48/8 over MSA at 2^20", f"{dense_bytes(s, M2_HKV) / msa_bytes(s):.2f}"],
        ["memory of index keys beside keys and values", f"{100 * DI / (2 * HKV * D):.1f} %"],
        ["MiniMax-M2: parameters; at work for a token, vocabulary left out; a vocabulary matrix",
         f"{everything / 1e9:.1f}B; {active / 1e9:.2f}B; {vocabulary / 1e9:.2f}B"],
    ]
    return {"facts": table(["by formula", ""], facts), "prefill": prefill_table(hopper, peers, gemm),
            "decode": decode_table(hopper, peers, copy), "m2": m2_table(read_csv("attention-m2-xeon-amx-2.csv")),
            "growth": growth_table(hopper)}


def put(text, name, part):
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        sys.exit(f"claims.py: docs/claims.md has no place for {name}")
    return text[: text.index(begin) + len(begin)] + f"\n{part}\n" + text[text.index(end) :]


def main(arguments):
    page = ROOT / "docs/claims.md"
    old = text = page.read_text(encoding="utf-8")
    for name, part in make_tables().items():
        text = put(text, name, part)
    if arguments == ["--check"]:
        return int(text != old)
    page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
