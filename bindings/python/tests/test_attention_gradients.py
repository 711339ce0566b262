"""The gradients of attention and of the index loss against PyTorch's autograd in float64.

One autograd graph per case, from the softmax over token masks; the library gets the same numbers in
float32. The package has no call for gradients: these are the C structures of msa/gradient.h.
"""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

import msa  # noqa: E402
from msa._arrays import Array  # noqa: E402
from msa._library import check, library  # noqa: E402
from msa._structs import Args, KvView, Plan, Tensor  # noqa: E402

HQ, HKV, D, DI, P, K = 6, 2, 32, 16, 16, 3
START = [("struct_size", c_uint32), ("flags", c_uint32)]
INDEX = [("offsets", Tensor), ("queries", Tensor)]


class ReverseIndexArgs(Args):
    _fields_ = START + [("blocks", Tensor), ("kv", KvView), ("cu_seqlens_q", c_void_p), ("block_size", c_int32),
                        ("reserved", c_int32)] + INDEX


class AttendBackwardArgs(Args):
    _fields_ = START + [("q", Tensor), ("kv", KvView), ("cu_seqlens_q", c_void_p), ("blocks", Tensor)] + INDEX + [
        ("block_size", c_int32), ("scale", c_float), ("out", Tensor), ("lse", Tensor), ("d_out", Tensor),
        ("dq", Tensor), ("dk", Tensor), ("dv", Tensor), ("accumulate", c_int32), ("reserved", c_int32)]


class DenseAttendBackwardArgs(Args):
    _fields_ = START + [("q", Tensor), ("kv", KvView), ("cu_seqlens_q", c_void_p), ("scale", c_float),
                        ("reserved", c_int32), ("window", c_int64), ("n_sink_tokens", c_int64),
                        ("sink_logit", c_void_p), ("out", Tensor), ("lse", Tensor), ("d_out", Tensor),
                        ("dq", Tensor), ("dk", Tensor), ("dv", Tensor), ("d_sink_logit", Tensor)]


class IndexKlArgs(Args):
    _fields_ = START + [("q", Tensor), ("q_index", Tensor), ("kv", KvView), ("cu_seqlens_q", c_void_p),
                        ("blocks", Tensor)] + INDEX + [
        ("block_size", c_int32), ("scale", c_float), ("index_scale", c_float), ("weight", c_float),
        ("lse", Tensor), ("index_lse", Tensor), ("loss", Tensor), ("dq_index", Tensor), ("dk_index", Tensor)]


class Batch:
    """Packed sequences of S = lengths[s] keys, of which the last T = tokens[s] are queries too."""

    def __init__(self, tokens, lengths):
        generator = torch.Generator().manual_seed(3)
        self.tokens, self.lengths = tokens, lengths
        n_tokens, n_keys = sum(tokens), sum(lengths)
        shapes = {"q": (n_tokens, HQ, D), "k": (n_keys, HKV, D), "v": (n_keys, HKV, D), "d_out": (n_tokens, HQ, D),
                  "q_index": (n_tokens, HKV, DI), "k_index": (n_keys, DI)}
        self.x = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        self.cu_q = torch.tensor([0, *tokens]).cumsum(0).to(torch.int32)
        self.cu_k = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        positions = [torch.arange(s - t, s) for t, s in zip(tokens, lengths)]
        self.position = torch.cat(positions)
        self.sequence = torch.repeat_interleave(torch.arange(len(tokens)), torch.tensor(tokens))
        self.blocks = torch.full((n_tokens, HKV, K), -1, dtype=torch.int32)
        for i in range(n_tokens):
            local = int(self.position[i]) // P
            for r in range(HKV):
                chosen = torch.randperm(local, generator=generator)[: K - 1].sort().values.tolist() + [local]
                self.blocks[i, r, : len(chosen)] = torch.tensor(chosen, dtype=torch.int32)

    def mask(self, sparse, window=0):
        """[T, HKV, keys]: what a row attends to."""
        key_position = torch.cat([torch.arange(s) for s in self.lengths])
        key_sequence = torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths))
        visible = (key_sequence == self.sequence[:, None]) & (key_position <= self.position[:, None])
        if window:
            visible &= self.position[:, None] - key_position < window
        mask = visible[:, None].expand(-1, HKV, -1)
        if sparse:
            mask = mask & (self.blocks[:, :, :, None] == (key_position // P)[None, None, None]).any(2)
        return mask

    def leaves(self):
        return {name: x.double().requires_grad_() for name, x in self.x.items()}


def attention(x, mask):
    """Weights [T, HQ, keys] and out [T, HQ, D] of masked attention."""
    k = x["k"].repeat_interleave(HQ // HKV, 1)
    v = x["v"].repeat_interleave(HQ // HKV, 1)
    scores = torch.einsum("ihd,jhd->ihj", x["q"], k) / D**0.5
    scores = scores.masked_fill(~mask.repeat_interleave(HQ // HKV, 1), float("-inf"))
    weights = scores.softmax(-1)
    return weights, scores.logsumexp(-1), torch.einsum("ihj,jhd->ihd", weights, v)


class Call:
    """One library call: arrays in, arrays out, whatever must stay alive."""

    def __init__(self, batch, args, **numbers):
        self.args, self.keep = args, [batch]
        for name, number in numbers.items():
            setattr(args, name, number)
        args.cu_seqlens_q = batch.cu_q.data_ptr()
        args.kv.cu_seqlens_k = batch.cu_k.data_ptr()
        args.kv.n_seqs = len(batch.tokens)

    def put(self, **arrays):
        for name, array in arrays.items():
            self.keep.append(array)
            target = self.args
            for part in name.split("__")[:-1]:
                target = getattr(target, part)
            setattr(target, name.split("__")[-1], Array(name, array).tensor)
        return self

    def run(self, name, run_name=None):
        context = msa.Context("cpu", n_threads=2)
        plan, reference = Plan(), ctypes.byref(self.args)
        check(getattr(library, f"msa_{name}_plan")(context.handle, reference, ctypes.byref(plan)))
        workspace = torch.zeros(plan.workspace_bytes + 64, dtype=torch.uint8)
        address = c_void_p((workspace.data_ptr() + 63) // 64 * 64)
        check(getattr(library, run_name or f"msa_{name}")(context.handle, ctypes.byref(plan), reference, address,
                                                          c_size_t(plan.workspace_bytes)))


def reverse_index(batch):
    offsets = torch.zeros((HKV, sum(batch.lengths) // P + len(batch.lengths) + 1), dtype=torch.int32)
    queries = torch.zeros((HKV, sum(batch.tokens) * K), dtype=torch.int32)
    call = Call(batch, ReverseIndexArgs(), block_size=P)
    call.put(blocks=batch.blocks, kv__k=batch.x["k"], offsets=offsets, queries=queries)
    call.run("reverse_index", "msa_reverse_index_build")
    return {"blocks": batch.blocks, "offsets": offsets, "queries": queries}


def assert_gradients(got, leaves):
    for name, gradient in got.items():
        want = leaves[name].grad
        torch.testing.assert_close(gradient.double(), want, rtol=0, atol=2e-5 * want.abs().max().item())


@pytest.mark.parametrize("tokens, lengths", [([50], [50]), ([1, 20, 7], [1, 77, 40])])
@pytest.mark.parametrize("kind", ["sparse", "dense", "window"])
def test_attention(tokens, lengths, kind):
    batch = Batch(tokens, lengths)
    x, leaves = batch.x, batch.leaves()
    window = 19 if kind == "window" else 0
    _, lse, out = attention(leaves, batch.mask(kind == "sparse", window))
    out.backward(x["d_out"].double())
    got = {name: torch.full_like(x[name], float("nan")) for name in ("q", "k", "v")}
    call = (Call(batch, AttendBackwardArgs(), block_size=P) if kind == "sparse"
            else Call(batch, DenseAttendBackwardArgs(), window=window))
    call.put(q=x["q"], kv__k=x["k"], kv__v=x["v"], d_out=x["d_out"], out=out.detach().float(),
             lse=lse.detach().float(), dq=got["q"], dk=got["k"], dv=got["v"])
    if kind == "sparse":
        call.put(**reverse_index(batch))
    call.run("attend_backward" if kind == "sparse" else "dense_attend_backward")
    assert_gradients(got, leaves)


@pytest.mark.parametrize("sparse", [True, False])
def test_index_kl(sparse):
    batch = Batch([1, 20, 33], [1, 77, 33])
    x, leaves, mask = batch.x, batch.leaves(), batch.mask(sparse)
    weights, lse, _ = attention(leaves, mask)
    teacher = weights.unflatten(1, (HKV, HQ // HKV)).mean(2).detach()
    scores = torch.einsum("ird,jd->irj", leaves["q_index"], leaves["k_index"]) / DI**0.5
    student = scores.masked_fill(~mask, float("-inf")).log_softmax(-1)
    terms = torch.where(teacher > 0, teacher * (teacher.clamp_min(1e-300).log() - student), 0.0)
    losses = terms.sum(-1)
    (0.25 * losses.sum()).backward()
    got = {name: torch.full_like(x[name], float("nan")) for name in ("q_index", "k_index")}
    loss = torch.full(losses.shape, float("nan"))
    before = {name: x[name].clone() for name in ("q", "k", "v")}
    call = Call(batch, IndexKlArgs(), block_size=P, weight=0.25).put(
        q=x["q"], q_index=x["q_index"], kv__k=x["k"], kv__k_index=x["k_index"], lse=lse.detach().float(), loss=loss,
        dq_index=got["q_index"], dk_index=got["k_index"])
    if sparse:
        call.put(**reverse_index(batch))
    call.run("index_kl")
    torch.testing.assert_close(loss.double(), losses.detach(), rtol=1e-5, atol=1e-5)
    assert_gradients(got, leaves)
    assert all(leaves[name].grad is None for name in before), "autograd: the backbone gets nothing"
    assert all(torch.equal(x[name], before[name]) for name in before)
