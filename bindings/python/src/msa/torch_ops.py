"""The operators as PyTorch custom ops, msa::select and so on: traced by torch.compile as one node.

Importing this module registers them. A paged view is passed with page_table and kv_lens, a packed one
with cu_seqlens_k, exactly as in operators.KvView.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, library

from . import operators

__all__ = ["select", "attend", "dense_attend"]


@library.custom_op("msa::select", mutates_args=())
def select(q_index: Tensor, k_index: Tensor, cu_seqlens_q: Tensor, topk: int,
           page_table: Optional[Tensor] = None, kv_lens: Optional[Tensor] = None,
           cu_seqlens_k: Optional[Tensor] = None, block_size: int = 128, n_init: int = 0,
           n_local: int = 1, k_index_scale: float = 0.0, settled: bool = False) -> Tensor:
    """Blocks int32 [T, Hkv, K] of q_index [T, Hkv, Di] over the index keys; see operators.select."""
    kv = operators.KvView(k_index=k_index, page_table=page_table, kv_lens=kv_lens,
                          cu_seqlens_k=cu_seqlens_k, k_index_scale=k_index_scale)
    return operators.select(q_index, kv, cu_seqlens_q=cu_seqlens_q, topk=topk, block_size=block_size,
                            n_init=n_init, n_local=n_local, settled=settled)


@select.register_fake
def _(q_index, k_index, cu_seqlens_q, topk, page_table=None, kv_lens=None, cu_seqlens_k=None,
      block_size=128, n_init=0, n_local=1, k_index_scale=0.0, settled=False):
    return q_index.new_empty((q_index.shape[0], q_index.shape[1], topk), dtype=torch.int32)


@library.custom_op("msa::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, cu_seqlens_q: Tensor,
           page_table: Optional[Tensor] = None, kv_lens: Optional[Tensor] = None,
           cu_seqlens_k: Optional[Tensor] = None, block_size: int = 128, scale: float = 0.0,
           k_scale: float = 0.0, v_scale: float = 0.0) -> tuple[Tensor, Tensor]:
    """Attention over selected blocks: out [T, Hq, D] and f32 lse [T, Hq]; see operators.attend."""
    kv = operators.KvView(k=k, v=v, page_table=page_table, kv_lens=kv_lens,
                          cu_seqlens_k=cu_seqlens_k, k_scale=k_scale, v_scale=v_scale)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    out = operators.attend(q, kv, blocks, cu_seqlens_q=cu_seqlens_q, block_size=block_size,
                           scale=scale, lse=lse)
    return out, lse


@attend.register_fake
def _(q, k, v, blocks, cu_seqlens_q, page_table=None, kv_lens=None, cu_seqlens_k=None,
      block_size=128, scale=0.0, k_scale=0.0, v_scale=0.0):
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@library.custom_op("msa::dense_attend", mutates_args=())
def dense_attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor,
                 page_table: Optional[Tensor] = None, kv_lens: Optional[Tensor] = None,
                 cu_seqlens_k: Optional[Tensor] = None, block_size: int = 128, scale: float = 0.0,
                 window: int = 0, n_sink_tokens: int = 0, sink_logit: Optional[Tensor] = None,
                 k_scale: float = 0.0, v_scale: float = 0.0) -> tuple[Tensor, Tensor]:
    """Causal attention over every visible key: out [T, Hq, D] and f32 lse [T, Hq]; see
    operators.dense_attend."""
    kv = operators.KvView(k=k, v=v, page_table=page_table, kv_lens=kv_lens,
                          cu_seqlens_k=cu_seqlens_k, k_scale=k_scale, v_scale=v_scale)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    out = operators.dense_attend(q, kv, cu_seqlens_q=cu_seqlens_q, block_size=block_size, scale=scale,
                                 window=window, n_sink_tokens=n_sink_tokens, sink_logit=sink_logit,
                                 lse=lse)
    return out, lse


@dense_attend.register_fake
def _(q, k, v, cu_seqlens_q, page_table=None, kv_lens=None, cu_seqlens_k=None, block_size=128,
      scale=0.0, window=0, n_sink_tokens=0, sink_logit=None, k_scale=0.0, v_scale=0.0):
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)
