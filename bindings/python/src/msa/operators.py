"""The attention operators of libmsa on arrays: select, attend, dense_attend and their helpers.

Letters of the shapes (docs/glossary.md): T query tokens of the batch, B sequences, S keys of a
sequence, Hq query heads, Hkv key/value heads, D head dim, Di index dim, P page (= block) size in
tokens, N = ceil(S / P) blocks, K blocks kept per token and group.

Arrays are PyTorch tensors or anything with DLPack; all of one call lie on one device: "cpu" arrays run
on the CPU backend, "cuda" arrays on the CUDA backend and PyTorch's current stream. Nothing is copied.
Errors are raised as InvalidArgument, Unsupported, OutOfMemory or MsaError, before anything is written.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy

from . import _structs
from ._arrays import Array, pointer
from ._library import InvalidArgument, check, library
from .context import Context, default_context

__all__ = ["KvView", "Index8", "select", "block_topk", "attend", "dense_attend", "attend_merge",
           "kv_append", "index_quantize"]


@dataclass
class KvView:
    """Keys, values and index keys of a batch for one layer, paged or packed (msa_kv_view).

    Attributes:
        k, v: packed [sum S, Hkv, D], paged [pages, Hkv, P, D]; f32, bf16 or fp8 E4M3. v and k may be
            None for select.
        k_index: packed [sum S, Di], paged [pages, P, Di]; None where an operator does not use it.
        page_table: int32 [B, max pages]: block b of sequence s is page page_table[s, b]; None: packed.
        kv_lens: int32 [B], S of every sequence, new tokens included; required when paged.
        cu_seqlens_k: int32 [B + 1], packed only: sequence s owns rows cu_seqlens_k[s] to
            cu_seqlens_k[s + 1]; None: one sequence that owns all rows.
        k_scale, v_scale, k_index_scale: what one unit of an fp8 lane stands for; 0 means 1.
    """

    k: Any = None
    v: Any = None
    k_index: Any = None
    page_table: Any = None
    kv_lens: Any = None
    cu_seqlens_k: Any = None
    k_scale: float = 0.0
    v_scale: float = 0.0
    k_index_scale: float = 0.0


@dataclass
class Index8:
    """Eight-bit copy of the index keys of a paged view (msa_index8), written by index_quantize.

    Attributes:
        keys: int8 [pages, P, Di].
        bounds: f32 [pages, 3]: scale, largest error norm and largest key norm of a page.
    """

    keys: Any
    bounds: Any


class _Call:
    """Arguments of one call: keeps their arrays alive and checks that they share a device."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.kept: list[Array] = []

    def tensor(self, name: str, source: Any) -> _structs.Tensor:
        if source is None:
            return _structs.Tensor()
        array = Array(name, source)
        self.kept.append(array)
        return array.tensor

    def pointer(self, name: str, source: Any, dtype: int = _structs.I32) -> int | None:
        return pointer(name, source, dtype, self.kept)

    def view(self, kv: KvView) -> _structs.KvView:
        view = _structs.KvView()
        view.k = self.tensor("kv.k", kv.k)
        view.v = self.tensor("kv.v", kv.v)
        view.k_index = self.tensor("kv.k_index", kv.k_index)
        view.kv_lens = self.pointer("kv.kv_lens", kv.kv_lens)
        if kv.page_table is not None:
            view.page_table = self.pointer("kv.page_table", kv.page_table)
            view.n_seqs, view.page_table_stride = kv.page_table.shape
        else:
            offsets = kv.cu_seqlens_k
            if offsets is None:
                rows = next(a for a in (kv.k, kv.k_index) if a is not None)
                offsets = Array("kv", rows).offsets(rows.shape[0])
            view.cu_seqlens_k = self.pointer("kv.cu_seqlens_k", offsets)
            view.n_seqs = offsets.shape[0] - 1
        view.k_scale, view.v_scale, view.k_index_scale = kv.k_scale, kv.v_scale, kv.k_index_scale
        return view

    def index8(self, index8: Index8) -> _structs.Index8:
        return _structs.Index8(self.tensor("index8.keys", index8.keys),
                               self.tensor("index8.bounds", index8.bounds))

    def offsets(self, source: Any, like: Any) -> int | None:
        """cu_seqlens_q; None: all tokens belong to one sequence."""
        if source is None:
            source = Array("cu_seqlens_q", like).offsets(like.shape[0])
        return self.pointer("cu_seqlens_q", source)

    def run(self, op: str, context: Context | None) -> None:
        devices = {array.device for array in self.kept}
        if len(devices) != 1:
            raise InvalidArgument(f"{op}: arrays on {sorted(devices)}, must lie on one device")
        (device_type, device), = devices
        handle = (context or default_context(device_type, device)).handle
        if op in _structs.IMMEDIATE:
            check(getattr(library, f"msa_{op}")(handle, ctypes.byref(self.args)))
            return
        plan = _structs.Plan()
        check(getattr(library, f"msa_{op}_plan")(handle, ctypes.byref(self.args), ctypes.byref(plan)))
        workspace, address = _workspace(plan.workspace_bytes, device_type, device)
        check(getattr(library, f"msa_{op}")(handle, ctypes.byref(plan), ctypes.byref(self.args), address,
                                            plan.workspace_bytes))
        del workspace


def _workspace(n_bytes: int, device_type: str, device: int) -> tuple[Any, int | None]:
    """Memory aligned to 64 bytes; on a device from PyTorch, which orders its reuse by stream."""
    if n_bytes == 0:
        return None, None
    if device_type == "cuda":
        import torch

        memory = torch.empty(n_bytes, dtype=torch.uint8, device=torch.device("cuda", device))
        return memory, memory.data_ptr()
    memory = numpy.empty(n_bytes + 64, numpy.uint8)
    return memory, (memory.ctypes.data + 63) // 64 * 64


def select(q_index: Any, kv: KvView, *, cu_seqlens_q: Any = None, block_size: int = 128,
           topk: int = 16, n_init: int = 0, n_local: int = 1, index_scale: float = 0.0,
           blocks: Any = None, block_scores: Any = None, index_lse: Any = None,
           index8: Index8 | None = None, n_rescored: Any = None, settled: bool = False,
           context: Context | None = None) -> Any:
    """Score every visible key with the index branch and keep the K best blocks of each token and group.

    Args:
        q_index: [T, Hkv, Di] f32, bf16 or f16.
        kv: the index keys; k and v may be None.
        cu_seqlens_q: int32 [B + 1] offsets of the sequences' query tokens; None: one sequence. The
            last query token of a sequence sees its last key.
        block_size: keys per block (P), a power of two in 16..256.
        topk: K in 1..64, forced blocks included.
        n_init, n_local: leading and newest blocks that are always kept; n_local -1: none.
        index_scale: scale of index_lse only; 0: 1/sqrt(Di). The ranking never scales.
        blocks: int32 [T, Hkv, K] to write into; None: a new array.
        block_scores: optional f32 [T, Hkv, N] to write block maxima into (-inf past the local block).
        index_lse: optional f32 [T, Hkv]: log-sum-exp of the scaled scores of the selected tokens.
        index8: eight-bit copy of the index keys of a paged view, scanned first: the same blocks from
            half of the bytes.
        n_rescored: optional int32 [T, Hkv], with index8: blocks that were scored from k_index.
        settled: a promise that the index keys (and their copy) before each sequence's query tokens were
            written before the last operation ahead on the stream began; that one may still write those
            of the query tokens, as kv_append does. A GPU may then read the others while it runs.

    Returns:
        blocks: ids ascending, the local block last, then -1. Ties go to the lower id.

    Source: (M5)-(M10); msa_select in include/msa/attention.h.
    """
    if blocks is None:
        blocks = Array("q_index", q_index).empty((*q_index.shape[:2], topk), _structs.I32)
    call = _Call(_structs.SelectArgs())
    args = call.args
    args.q_index = call.tensor("q_index", q_index)
    args.kv = call.view(kv)
    args.cu_seqlens_q = call.offsets(cu_seqlens_q, q_index)
    args.block_size, args.topk, args.n_init, args.n_local = block_size, topk, n_init, n_local
    args.index_scale = index_scale
    args.blocks = call.tensor("blocks", blocks)
    args.block_scores = call.tensor("block_scores", block_scores)
    args.index_lse = call.tensor("index_lse", index_lse)
    if index8 is not None:
        args.index8 = call.index8(index8)
    args.n_rescored = call.tensor("n_rescored", n_rescored)
    args.settled = settled
    call.run("select", context)
    return blocks


def block_topk(scores: Any, n_visible: Any, *, topk: int = 16, n_init: int = 0, n_local: int = 1,
               blocks: Any = None, context: Context | None = None) -> Any:
    """Keep the K best blocks from block scores.

    Args:
        scores: f32 [T, Hkv, N].
        n_visible: int32 [T], visible blocks of each token, 0..N.
        topk, n_init, n_local: as in select.
        blocks: int32 [T, Hkv, K] to write into; None: a new array.

    Returns:
        blocks, as select does.

    Source: (M7)-(M9); msa_block_topk.
    """
    if blocks is None:
        blocks = Array("scores", scores).empty((*scores.shape[:2], topk), _structs.I32)
    call = _Call(_structs.BlockTopkArgs())
    args = call.args
    args.scores = call.tensor("scores", scores)
    args.n_visible = call.pointer("n_visible", n_visible)
    args.topk, args.n_init, args.n_local = topk, n_init, n_local
    args.blocks = call.tensor("blocks", blocks)
    call.run("block_topk", context)
    return blocks


def attend(q: Any, kv: KvView, blocks: Any, *, cu_seqlens_q: Any = None, block_size: int = 128,
           scale: float = 0.0, out: Any = None, lse: Any = None, context: Context | None = None) -> Any:
    """Exact softmax attention of every token over its selected blocks.

    Args:
        q: [T, Hq, D] f32, bf16 or f16.
        kv: keys and values; k_index may be None.
        blocks: int32 [T, Hkv, K] ascending unique ids, then -1, as select returns them.
        cu_seqlens_q: int32 [B + 1]; None: one sequence.
        block_size: keys per block (P).
        scale: softmax scale; 0: 1/sqrt(D).
        out: [T, Hq, D] in q's dtype to write into; None: a new array.
        lse: optional f32 [T, Hq] to write the natural log-sum-exp into.

    Returns:
        out; zero where a token has no block.

    Source: (M10), (M11); msa_attend.
    """
    if out is None:
        out = Array("q", q).empty(tuple(q.shape))
    call = _Call(_structs.AttendArgs())
    args = call.args
    args.q = call.tensor("q", q)
    args.kv = call.view(kv)
    args.cu_seqlens_q = call.offsets(cu_seqlens_q, q)
    args.blocks = call.tensor("blocks", blocks)
    args.block_size, args.scale = block_size, scale
    args.out = call.tensor("out", out)
    args.lse = call.tensor("lse", lse)
    call.run("attend", context)
    return out


def select_attend(q_index: Any, q: Any, kv: KvView, *, cu_seqlens_q: Any = None, block_size: int = 128,
                  topk: int = 16, n_init: int = 0, n_local: int = 1, scale: float = 0.0,
                  blocks: Any = None, out: Any = None, lse: Any = None, index8: Index8 | None = None,
                  settled: bool = False, context: Context | None = None) -> tuple[Any, Any]:
    """select, then attend over its rows, with the same results; on a GPU decoding takes fewer steps.

    Args:
        q_index, topk, n_init, n_local, blocks, index8, settled: as in select.
        q, scale, out, lse: as in attend.
        kv: keys, values and index keys.
        cu_seqlens_q, block_size: as in both.

    Returns:
        out [T, Hq, D] and blocks [T, Hkv, K].

    Source: (M5)-(M11); msa_select_attend.
    """
    if blocks is None:
        blocks = Array("q_index", q_index).empty((*q_index.shape[:2], topk), _structs.I32)
    if out is None:
        out = Array("q", q).empty(tuple(q.shape))
    call = _Call(_structs.SelectAttendArgs())
    chosen, attended = _structs.SelectArgs(), _structs.AttendArgs()
    chosen.q_index, attended.q = call.tensor("q_index", q_index), call.tensor("q", q)
    chosen.kv = attended.kv = call.view(kv)
    chosen.cu_seqlens_q = attended.cu_seqlens_q = call.offsets(cu_seqlens_q, q)
    chosen.block_size = attended.block_size = block_size
    chosen.topk, chosen.n_init, chosen.n_local = topk, n_init, n_local
    chosen.blocks = attended.blocks = call.tensor("blocks", blocks)
    if index8 is not None:
        chosen.index8 = call.index8(index8)
    chosen.settled = settled
    attended.scale = scale
    attended.out, attended.lse = call.tensor("out", out), call.tensor("lse", lse)
    call.args.select, call.args.attend = ctypes.pointer(chosen), ctypes.pointer(attended)
    call.run("select_attend", context)
    return out, blocks


def dense_attend(q: Any, kv: KvView, *, cu_seqlens_q: Any = None, block_size: int = 128,
                 scale: float = 0.0, window: int = 0, n_sink_tokens: int = 0, sink_logit: Any = None,
                 out: Any = None, lse: Any = None, context: Context | None = None) -> Any:
    """Causal grouped-query attention over every visible key, or over a sliding window.

    Args:
        q: [T, Hq, D] f32, bf16 or f16.
        kv: keys and values; k_index may be None.
        cu_seqlens_q: int32 [B + 1]; None: one sequence.
        block_size: page size of a paged view, tile of a packed one.
        scale: softmax scale; 0: 1/sqrt(D).
        window: tokens a query sees, itself included; 0: all before it.
        n_sink_tokens: with a window, leading tokens that stay visible.
        sink_logit: optional f32 [Hq]: one more key of this logit and value 0.
        out, lse: as in attend; lse contains the sink logit.

    Returns:
        out [T, Hq, D].

    Source: msa_dense_attend.
    """
    if out is None:
        out = Array("q", q).empty(tuple(q.shape))
    call = _Call(_structs.DenseAttendArgs())
    args = call.args
    args.q = call.tensor("q", q)
    args.kv = call.view(kv)
    args.cu_seqlens_q = call.offsets(cu_seqlens_q, q)
    args.block_size, args.scale = block_size, scale
    args.window, args.n_sink_tokens = window, n_sink_tokens
    args.sink_logit = call.pointer("sink_logit", sink_logit, _structs.F32)
    args.out = call.tensor("out", out)
    args.lse = call.tensor("lse", lse)
    call.run("dense_attend", context)
    return out


def attend_merge(out_a: Any, lse_a: Any, out_b: Any, lse_b: Any, *, out: Any = None, lse: Any = None,
                 context: Context | None = None) -> Any:
    """Merge two partial results over disjoint key sets.

    Args:
        out_a, out_b: [T, Hq, D] f32, bf16 or f16.
        lse_a, lse_b: f32 [T, Hq], natural log.
        out: array to write into, may be out_a or out_b; None: a new one like out_a.
        lse: optional f32 [T, Hq] for the merged log-sum-exp.

    Returns:
        out.

    Source: (M12); msa_attend_merge.
    """
    if out is None:
        out = Array("out_a", out_a).empty(tuple(out_a.shape))
    call = _Call(_structs.AttendMergeArgs())
    args = call.args
    args.out_a, args.lse_a = call.tensor("out_a", out_a), call.tensor("lse_a", lse_a)
    args.out_b, args.lse_b = call.tensor("out_b", out_b), call.tensor("lse_b", lse_b)
    args.out, args.lse = call.tensor("out", out), call.tensor("lse", lse)
    call.run("attend_merge", context)
    return out


def kv_append(k: Any, v: Any, kv: KvView, *, k_index: Any = None, cu_seqlens_q: Any = None,
              block_size: int = 128, context: Context | None = None) -> None:
    """Write the rows of new tokens into their slots of the cache, converting to its dtypes.

    Args:
        k, v: [T, Hkv, D] f32, bf16 or f16.
        kv: the cache; kv_lens already counts the new tokens.
        k_index: [T, Di], present exactly where kv.k_index is.
        cu_seqlens_q: int32 [B + 1]; None: one sequence.
        block_size: page size P.

    Source: msa_kv_append.
    """
    call = _Call(_structs.KvAppendArgs())
    args = call.args
    args.k, args.v = call.tensor("k", k), call.tensor("v", v)
    args.k_index = call.tensor("k_index", k_index)
    args.cu_seqlens_q = call.offsets(cu_seqlens_q, k)
    args.kv = call.view(kv)
    args.block_size = block_size
    call.run("kv_append", context)


def index_quantize(kv: KvView, index8: Index8, n_tokens: int, *, cu_seqlens_q: Any = None,
                   block_size: int = 128, context: Context | None = None) -> None:
    """Quantise the pages that became full with the last n_tokens tokens; call it after kv_append.

    Args:
        kv: paged; its k_index is read, kv_lens counts the new tokens.
        index8: the copy to write into.
        n_tokens: T, the new tokens of the batch.
        cu_seqlens_q: int32 [B + 1]; None: all belong to one sequence.
        block_size: page size P.

    Source: (Q1), (Q2); msa_index_quantize.
    """
    call = _Call(_structs.IndexQuantizeArgs())
    args = call.args
    args.kv = call.view(kv)
    if cu_seqlens_q is None:
        cu_seqlens_q = Array("kv.k_index", kv.k_index).offsets(n_tokens)
    args.cu_seqlens_q = call.pointer("cu_seqlens_q", cu_seqlens_q)
    args.n_tokens, args.block_size = n_tokens, block_size
    args.index8 = call.index8(index8)
    call.run("index_quantize", context)
