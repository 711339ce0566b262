"""PyTorch's attention on a GPU, at the shapes of `msa bench attention --device cuda`.

python3 hopper_attention.py [--out FILE.csv] [--commit TEXT] [--max-context N]

Dense attention of scaled_dot_product_attention (cuDNN and FlashAttention backends), FlexAttention under a
block mask made of the same kinds of selection, and FlashInfer's sparse operators where the installed
package has them. 64 query and 4 key/value heads of 128, bf16. Times are medians of CUDA events; inputs
are larger than the caches of the device, or rotate. What cannot run says why.
"""

import argparse
import datetime
import importlib.util
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Q_HEADS, KV_HEADS, DIM, BLOCK, TOPK, CHUNK = 64, 4, 128, 128, 16, 8192
COLD_BYTES = 3e8
REPS = 25


def measure(run, n_inputs):
    """Median, p10 and p90 in microseconds of run(i); each repetition gets another input."""
    run(0)
    torch.cuda.synchronize()
    times = []
    while len(times) < REPS:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(len(times) % n_inputs)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    times.sort()
    return statistics.median(times), times[len(times) // 10], times[len(times) * 9 // 10], len(times)


def measure_steps(run, n_inputs):
    """The same for something short: one CUDA graph over all inputs."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(n_inputs):
            run(i)
    median, p10, p90, reps = measure(lambda _: graph.replay(), 1)
    return median / n_inputs, p10 / n_inputs, p90 / n_inputs, reps


def caches(n_keys, n):
    shape = (1, KV_HEADS, n_keys, DIM)
    return [
        tuple(torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        for _ in range(n)
    ]


def dense(backend, n_new, n_keys):
    """n_new tokens at the end of n_keys. A whole prompt is causal; the triangle at the end of a chunk
    counts as half of its keys, without a mask."""
    is_causal = n_new == n_keys
    if n_new > 1 and not is_causal:
        n_keys -= n_new // 2
    n = max(1, min(64, int(COLD_BYTES / (4 * KV_HEADS * DIM * n_keys)) + 1))
    n = max(n, 8) if n_new == 1 and n_keys <= 1 << 17 else n
    kv = caches(n_keys, n)
    q = torch.randn(1, Q_HEADS, n_new, DIM, device="cuda", dtype=torch.bfloat16)

    def run(i):
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(q, *kv[i], is_causal=is_causal, enable_gqa=True)

    return measure_steps(run, n) if n_new == 1 else measure(run, n)


def selections(n_keys, is_clustered):
    """bool [KV_HEADS, CHUNK, blocks]: 16 blocks a token, the local one among them."""
    n_blocks = n_keys // BLOCK
    local = (torch.arange(CHUNK, device="cuda") + n_keys - CHUNK) // BLOCK
    weight = torch.rand(KV_HEADS, CHUNK, n_blocks, device="cuda")
    if is_clustered:  # neighbours agree, but for some noise; the first and the newest blocks are hot
        weight = 0.1 * weight + torch.rand(KV_HEADS, CHUNK // 16, n_blocks, device="cuda").repeat_interleave(16, 1)
        weight[:, :, 0] = 3
    blocks = torch.arange(n_blocks, device="cuda")
    weight.masked_fill_(blocks > local[:, None], -1)
    weight.masked_fill_(blocks == local[:, None], 4)
    rows = weight.topk(TOPK, dim=-1).indices
    return torch.zeros_like(weight, dtype=torch.bool).scatter_(-1, rows, True)


def flex(n_keys, is_clustered):
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    chosen = selections(n_keys, is_clustered)
    union = chosen.view(KV_HEADS, CHUNK // BLOCK, BLOCK, -1).any(2)
    union = union.repeat_interleave(Q_HEADS // KV_HEADS, 0)[None]
    number = union.sum(-1, dtype=torch.int32)
    order = union.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    first = n_keys - CHUNK

    def mask(b, h, i, j):
        return chosen[h // (Q_HEADS // KV_HEADS), i, j // BLOCK] & (j <= i + first)

    blocks = BlockMask.from_kv_blocks(number, order, BLOCK_SIZE=BLOCK, mask_mod=mask, seq_lengths=(CHUNK, n_keys))
    q = torch.randn(1, Q_HEADS, CHUNK, DIM, device="cuda", dtype=torch.bfloat16)
    kv = caches(n_keys, 1)
    compiled = torch.compile(flex_attention)
    return measure(lambda i: compiled(q, *kv[i], block_mask=blocks, enable_gqa=True), 1)


def flashinfer():
    if importlib.util.find_spec("flashinfer") is None:
        raise RuntimeError("not installed")
    import flashinfer as package

    names = [name for name in dir(package) if "msa" in name.lower()]
    if not names:
        raise RuntimeError(f"version {package.__version__} has no MSA operators")
    raise RuntimeError(f"version {package.__version__} has {names}, which this script does not know")


def cases(max_context):
    backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    for name, backend in backends.items():
        for n in (1 << k for k in range(13, 21)):
            if n <= max_context:
                yield f"sdpa-{name}", f"step-at-{n >> 10}K", 1, n, lambda b=backend, n=n: dense(b, 1, n)
        for n in (1 << 13, 1 << 15, 1 << 17, 1 << 20):
            if n <= max_context:
                yield f"sdpa-{name}", f"chunk-at-{n >> 10}K", CHUNK, n, lambda b=backend, n=n: dense(b, CHUNK, n)
    n = min(1 << 17, max_context)
    for pattern in ("uniform", "clustered"):
        yield (
            "flex-attention", f"chunk-attend-{pattern}-at-{n >> 10}K", CHUNK, n,
            lambda c=pattern == "clustered": flex(n, c),
        )
    yield "flashinfer", "chunk-attend", CHUNK, n, flashinfer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--max-context", type=int, default=1 << 20)
    options = parser.parse_args()
    machine = torch.cuda.get_device_name()
    out = open(options.out, "w") if options.out else None
    if out:
        out.write("schema,date,commit,machine,peer,case,T,S,reps,median_us,p10_us,p90_us,torch,command\n")
    print(f"{machine}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    for peer, case, n_new, n_keys, run in cases(options.max_context):
        try:
            median, p10, p90, reps = run()
        except Exception as problem:
            print(f"{peer:16} {case:32} does not run: {str(problem).splitlines()[0][:120]}", flush=True)
            continue
        finally:
            torch.cuda.empty_cache()
        print(f"{peer:16} {case:32} {median:12.1f} {p10:12.1f} {p90:12.1f}", flush=True)
        if out:
            out.write(
                f"1,{datetime.date.today()},{options.commit},{machine},{peer},{case},{n_new},{n_keys},{reps},"
                f"{median:.2f},{p10:.2f},{p90:.2f},{torch.__version__},"
                f"python3 hopper_attention.py --max-context {options.max_context}\n"
            )


if __name__ == "__main__":
    main()
