"""The operators on NumPy arrays and PyTorch tensors against plain loops."""

import ctypes
import pathlib
import re

import numpy
import pytest

import msa
from msa import _structs

try:
    import torch
    from torch import library
except ImportError:
    torch = None

RNG = numpy.random.default_rng(11)
T, S, HQ, HKV, D, P, K = 70, 300, 4, 2, 32, 16, 5


def arrays():
    shapes = {"q": (T, HQ, D), "q_index": (T, HKV, D), "k": (S, HKV, D), "v": (S, HKV, D), "k_index": (S, D)}
    return {name: RNG.standard_normal(shape).astype(numpy.float32) for name, shape in shapes.items()}


def naive_select(x):
    rows = numpy.full((T, HKV, K), -1, numpy.int32)
    for t in range(T):
        position = S - T + t
        for g in range(HKV):
            scores = x["k_index"][: position + 1].astype(float) @ x["q_index"][t, g]
            local = position // P
            best = [(scores[b * P : (b + 1) * P].max(), -b) for b in range(local)]
            chosen = sorted([-b for _, b in sorted(best, reverse=True)[: K - 1]] + [local])
            rows[t, g, : len(chosen)] = chosen
    return rows


def naive_attend(x, rows=None, window=0):
    out = numpy.zeros((T, HQ, D))
    lse = numpy.zeros((T, HQ))
    for t in range(T):
        position = S - T + t
        for h in range(HQ):
            g = h // (HQ // HKV)
            keys = numpy.arange(position + 1)
            if rows is not None:
                keys = keys[numpy.isin(keys // P, rows[t, g])]
            if window:
                keys = keys[keys > position - window]
            scores = x["k"][keys, g].astype(float) @ x["q"][t, h] / numpy.sqrt(D)
            weights = numpy.exp(scores - scores.max())
            out[t, h] = weights @ x["v"][keys, g] / weights.sum()
            lse[t, h] = scores.max() + numpy.log(weights.sum())
    return out, lse


def view(x):
    return msa.KvView(k=x["k"], v=x["v"], k_index=x["k_index"])


def test_numpy():
    x = arrays()
    rows = msa.select(x["q_index"], view(x), block_size=P, topk=K)
    assert numpy.array_equal(rows, naive_select(x))
    lse = numpy.empty((T, HQ), numpy.float32)
    out = msa.attend(x["q"], view(x), rows, block_size=P, lse=lse)
    expected, expected_lse = naive_attend(x, rows)
    assert numpy.allclose(out, expected, atol=1e-5) and numpy.allclose(lse, expected_lse, atol=1e-5)
    both, both_lse = numpy.empty_like(out), numpy.empty_like(lse)
    assert numpy.array_equal(msa.select_attend(x["q_index"], x["q"], view(x), block_size=P, topk=K, out=both,
                                               lse=both_lse)[1], rows)
    assert numpy.array_equal(both, out) and numpy.array_equal(both_lse, lse)
    out = msa.dense_attend(x["q"], view(x), window=33)
    assert numpy.allclose(out, naive_attend(x, window=33)[0], atol=1e-5)


def test_merge_of_two_halves_is_the_whole():
    x = arrays()
    halves = []
    for first, last in ((0, 160), (160, S)):
        kv = msa.KvView(k=x["k"][first:last], v=x["v"][first:last])
        lse = numpy.empty((1, HQ), numpy.float32)
        halves += [msa.dense_attend(x["q"][-1:], kv, lse=lse), lse]
    merged = msa.attend_merge(*halves)
    assert numpy.allclose(merged, naive_attend(x)[0][-1:], atol=1e-5)


def test_paged_append_gives_the_packed_result():
    x = arrays()
    n_pages = -(-S // P)
    table = RNG.permutation(n_pages).astype(numpy.int32)[None]
    kv = msa.KvView(k=numpy.full((n_pages, HKV, P, D), numpy.nan, numpy.float32),
                    v=numpy.full((n_pages, HKV, P, D), numpy.nan, numpy.float32),
                    k_index=numpy.full((n_pages, P, D), numpy.nan, numpy.float32),
                    page_table=table, kv_lens=numpy.array([S], numpy.int32))
    msa.kv_append(x["k"], x["v"], kv, k_index=x["k_index"], block_size=P)
    rows = msa.select(x["q_index"], kv, block_size=P, topk=K)
    assert numpy.array_equal(rows, naive_select(x))
    assert numpy.array_equal(msa.attend(x["q"], kv, rows, block_size=P),
                             msa.attend(x["q"], view(x), rows, block_size=P))


def test_eight_bit_scan_selects_the_same():
    x = arrays()
    n_pages = S // P
    x["k_index"] = x["k_index"][: n_pages * P]
    kv = msa.KvView(k_index=x["k_index"].reshape(n_pages, P, D), kv_lens=numpy.array([n_pages * P], numpy.int32),
                    page_table=numpy.arange(n_pages, dtype=numpy.int32)[None])
    copy = msa.Index8(numpy.zeros((n_pages, P, D), numpy.int8), numpy.zeros((n_pages, 3), numpy.float32))
    msa.index_quantize(kv, copy, n_pages * P, block_size=P)
    restored = copy.keys.astype(float) * copy.bounds[:, :1, None]
    errors = numpy.linalg.norm(kv.k_index - restored, axis=-1).max(1)
    assert (errors <= copy.bounds[:, 1]).all() and (errors > 0).all()
    n_rescored = numpy.zeros((T, HKV), numpy.int32)
    for context in (msa.Context("ref"), msa.Context("cpu")):
        rows = msa.select(x["q_index"], kv, block_size=P, topk=K, index8=copy, n_rescored=n_rescored,
                          context=context)
        assert numpy.array_equal(rows, msa.select(x["q_index"], kv, block_size=P, topk=K, settled=True))
        assert (n_rescored > 0).all()


def test_structures_equal_the_headers():
    """Offsets that the C tests fix: AT(msa_select_args, topk, 456) and the like."""
    table = pathlib.Path(__file__, "../../../../tests/api/abi_sizes.c").resolve().read_text()
    structs = {"msa_tensor": _structs.Tensor, "msa_kv_view": _structs.KvView, "msa_plan": _structs.Plan,
               "msa_index8": _structs.Index8, "msa_context_args": _structs.ContextArgs}
    structs |= {f"msa_{op}_args": args for op, args in {**_structs.PLANNED, **_structs.IMMEDIATE}.items()}
    offsets = re.findall(r"AT\((\w+), (\w+), (\d+)\)", table)
    sizes = dict(re.findall(r"SIZE\((\w+), (\d+)\)", table))
    for name, struct in structs.items():
        fields = {field: int(offset) for of, field, offset in offsets if of == name}
        assert fields == {field: getattr(struct, field).offset for field, _ in struct._fields_}, name
        assert ctypes.sizeof(struct) == int(sizes[name]), name


def test_block_topk():
    scores = numpy.array([[[1, 5, 5, 2, 0]]], numpy.float32)
    rows = msa.block_topk(scores, numpy.array([5], numpy.int32), topk=3)
    assert rows.tolist() == [[[1, 2, 4]]]


def test_threads_and_reference_agree():
    x = arrays()
    contexts = [msa.Context("cpu", n_threads=1), msa.Context("cpu", n_threads=3), msa.Context("ref")]
    rows = [msa.select(x["q_index"], view(x), block_size=P, topk=K, context=c) for c in contexts]
    assert numpy.array_equal(rows[0], rows[1]) and numpy.array_equal(rows[0], rows[2])
    assert contexts[1].n_threads == 3 and contexts[2].isa == "scalar"


@pytest.mark.parametrize("change,text", [
    ({"topk": 65}, "topk = 65"), ({"block_size": 24}, "block_size = 24"),
    ({"cu_seqlens_q": numpy.array([0.0, 1.0])}, "cu_seqlens_q"),
    ({"blocks": numpy.empty((T, HKV, K), numpy.int64)}, "blocks"),
])
def test_errors_name_the_argument(change, text):
    x = arrays()
    with pytest.raises((msa.InvalidArgument, ValueError), match=text):
        msa.select(x["q_index"], view(x), **{"block_size": P, "topk": K, **change})


def test_not_an_array():
    with pytest.raises(msa.InvalidArgument, match="q_index = list"):
        msa.select([1.0], msa.KvView(k_index=numpy.zeros((1, D), numpy.float32)), blocks=numpy.zeros(1))


@pytest.mark.skipif(torch is None, reason="needs PyTorch")
class TestTorch:
    def devices(self):
        return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

    def test_equals_numpy(self):
        x = arrays()
        for device in self.devices():
            y = {name: torch.from_numpy(value).to(device) for name, value in x.items()}
            rows = msa.select(y["q_index"], view(y), block_size=P, topk=K)
            assert numpy.array_equal(rows.cpu(), naive_select(x))
            out = msa.attend(y["q"], view(y), rows, block_size=P)
            assert out.device.type == device
            assert numpy.allclose(out.cpu(), naive_attend(x, rows.cpu().numpy())[0], atol=1e-5)

    def test_bf16_and_strides(self):
        for device in self.devices():
            q = torch.randn(T, 2 * HQ, D, dtype=torch.bfloat16, device=device)[:, ::2]
            k, v = (torch.randn(HKV, S, D, dtype=torch.bfloat16, device=device).transpose(0, 1)
                    for _ in range(2))
            out = msa.dense_attend(q, msa.KvView(k=k, v=v))
            x = {"q": q, "k": k, "v": v}
            expected = naive_attend({n: t.float().cpu().numpy() for n, t in x.items()})[0]
            assert out.dtype == torch.bfloat16
            assert numpy.allclose(out.float().cpu(), expected, atol=2e-2)

    def test_custom_ops(self):
        from msa import torch_ops

        x = {name: torch.from_numpy(value) for name, value in arrays().items()}
        cu_q, cu_k = torch.tensor([0, T], dtype=torch.int32), torch.tensor([0, S], dtype=torch.int32)
        args = (x["q_index"], x["k_index"], cu_q, K)
        library.opcheck(torch_ops.select, args, {"cu_seqlens_k": cu_k, "block_size": P})
        rows = torch_ops.select(*args, cu_seqlens_k=cu_k, block_size=P)
        library.opcheck(torch_ops.attend, (x["q"], x["k"], x["v"], rows, cu_q),
                              {"cu_seqlens_k": cu_k, "block_size": P})
        library.opcheck(torch_ops.dense_attend, (x["q"], x["k"], x["v"], cu_q), {"cu_seqlens_k": cu_k})

    def test_custom_ops_are_nodes_of_a_compiled_graph(self):
        from msa import torch_ops

        for device in self.devices():
            x = {name: torch.from_numpy(value).to(device) for name, value in arrays().items()}
            cu_q, cu_k = (torch.tensor([0, n], dtype=torch.int32, device=device) for n in (T, S))

            def attend(q_index, k_index, q, k, v):
                rows = torch_ops.select(q_index, k_index, cu_q, K, cu_seqlens_k=cu_k, block_size=P)
                return torch_ops.attend(q, k, v, rows, cu_q, cu_seqlens_k=cu_k, block_size=P)[0]

            inputs = [x[name] for name in ("q_index", "k_index", "q", "k", "v")]
            compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
            assert torch.equal(compiled(*inputs), attend(*inputs))
