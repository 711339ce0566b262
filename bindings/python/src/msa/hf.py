"""Hugging Face's MiniMax-M3 on the operators of libmsa: one call, `msa.hf.enable(model)`.

Enabled, the indexers of the sparse layers call select instead of building a [T, S] score matrix, sparse
layers call attend on the blocks they hand over, full layers call dense_attend. Inference only, for rows
without padding or with sequences of equal length.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as m3

from . import torch_ops
from ._library import InvalidArgument

NAME = "msa"

__all__ = ["NAME", "enable", "disable"]


def _offsets(n_tokens: int, device: torch.device) -> torch.Tensor:
    return torch.arange(2, dtype=torch.int32, device=device) * n_tokens


def _lengths(position_ids: torch.Tensor | None, n_rows: int, n_keys: int,
             device: torch.device) -> torch.Tensor:
    """int32 [rows]: keys that exist for the last token of every row; static caches hold more slots."""
    if position_ids is None:
        return torch.full((n_rows,), n_keys, dtype=torch.int32, device=device)
    last = position_ids.reshape(-1, position_ids.shape[-1])[:, -1].to(torch.int32) + 1
    return last.expand(n_rows).contiguous()


class Indexer(m3.MiniMaxM3VLIndexer):
    """The model's indexer with its projections, norms and cache, selecting by msa.select."""

    def forward(self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor],
                past_key_values: Any, position_ids: torch.Tensor) -> torch.Tensor:
        """Blocks int32 [B, Hkv, T, K] of hidden_states [B, T, H], in msa.select's order."""
        n_rows, n_tokens, _ = hidden_states.shape
        heads = (n_rows, n_tokens, -1, self.head_dim)
        q = self.q_norm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)
        k = self.k_norm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)
        cos, sin = (table[..., : self.head_dim] for table in position_embeddings)
        q, k = m3.apply_rotary_pos_emb(q, k, cos, sin)
        if past_key_values is not None:
            k = past_key_values.layers[self.layer_idx].update_index(k)
        lengths = _lengths(position_ids, n_rows, k.shape[2], q.device)
        cu_q, cu_k = _offsets(n_tokens, q.device), _offsets(k.shape[2], q.device)
        blocks = [
            torch_ops.select(q[row].transpose(0, 1), k[row, 0], cu_q, self.topk_blocks,
                             kv_lens=lengths[row : row + 1], cu_seqlens_k=cu_k,
                             block_size=self.block_size, n_local=max(self.local_blocks, 1))
            for row in range(n_rows)
        ]
        return torch.stack(blocks).transpose(1, 2)


def _ascending(blocks: torch.Tensor) -> torch.Tensor:
    """Rows in attend's order: ids ascending, then -1. msa.select's int32 rows are so already."""
    if blocks.dtype == torch.int32:
        return blocks
    last = torch.iinfo(torch.int32).max
    rows = blocks.to(torch.int32).masked_fill(blocks < 0, last).sort(dim=-1).values
    return rows.masked_fill(rows == last, -1)


def attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
              attention_mask: torch.Tensor | None = None, dropout: float = 0.0,
              scaling: float | None = None, block_indices: torch.Tensor | None = None,
              **kwargs: Any) -> tuple[torch.Tensor, None]:
    """Attention of one layer in the form transformers calls it.

    Args:
        query: [B, Hq, T, D]; key, value: [B, Hkv, S, D], S slots of the cache.
        attention_mask: must be None; the mask function of this implementation refuses padding.
        dropout: must be 0.
        scaling: softmax scale; None: 1/sqrt(D).
        block_indices: [B, Hkv, T, K] blocks of a sparse layer; None: a full layer.

    Returns:
        [B, T, Hq, D], and None for the weights.

    Raises:
        InvalidArgument: a mask, dropout, or gradients asked for.
    """
    if attention_mask is not None:
        raise InvalidArgument("attention_mask: given, must be None: pass rows of equal length without "
                              "padding, or set_attn_implementation('sdpa')")
    if dropout != 0.0:
        raise InvalidArgument(f"dropout = {dropout}, must be 0")
    if torch.is_grad_enabled() and query.requires_grad:
        raise InvalidArgument("query: requires gradients, these operators are for inference: call the "
                              "model under torch.no_grad()")
    n_rows, _, n_tokens, _ = query.shape
    cu_q, cu_k = _offsets(n_tokens, query.device), _offsets(key.shape[2], query.device)
    lengths = _lengths(kwargs.get("position_ids"), n_rows, key.shape[2], query.device)
    out = []
    for row in range(n_rows):
        q, k, v = (x[row].transpose(0, 1) for x in (query, key, value))
        view = {"kv_lens": lengths[row : row + 1], "cu_seqlens_k": cu_k, "scale": scaling or 0.0}
        if block_indices is None:
            out.append(torch_ops.dense_attend(q, k, v, cu_q, **view)[0])
        else:
            blocks = _ascending(block_indices[row]).transpose(0, 1)
            out.append(torch_ops.attend(q, k, v, blocks, cu_q, block_size=module.indexer.block_size,
                                        **view)[0])
    return torch.stack(out), None


def mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> None:
    """The operators are causal by themselves: no mask is built, and padding is refused.

    Raises:
        InvalidArgument: attention_mask [B, S] marks padding.
    """
    if attention_mask is not None and not torch.compiler.is_compiling() and not attention_mask.all():
        raise InvalidArgument("attention_mask: marks padding, must be all ones: pass rows of equal length, "
                              "or set_attn_implementation('sdpa')")


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, mask)


def _set(model: torch.nn.Module, implementation: str) -> None:
    """Only the text part: the vision tower keeps its own attention."""
    if "text_config" in getattr(model.config, "sub_configs", {}):
        implementation = {"text_config": implementation}
    model.set_attn_implementation(implementation)


def enable(model: torch.nn.Module) -> torch.nn.Module:
    """Run a MiniMax-M3 model of transformers on libmsa's operators, in place.

    Args:
        model: MiniMaxM3VLForCausalLM, MiniMaxM3SparseForConditionalGeneration or a part of them, on a
            CPU or a Hopper GPU, in f32, bf16 or f16.

    Returns:
        The same model.

    Raises:
        InvalidArgument: the model has no MiniMax-M3 attention.

    Source: transformers hands block_indices to the registered attention function.
    """
    if not any(isinstance(module, m3.MiniMaxM3VLAttention) for module in model.modules()):
        raise InvalidArgument(f"model = {type(model).__name__}, must be a MiniMax-M3 model of transformers")
    _set(model, NAME)
    for module in model.modules():
        if type(module) is m3.MiniMaxM3VLIndexer:
            module.__class__ = Indexer
    return model


def disable(model: torch.nn.Module, implementation: str = "sdpa") -> torch.nn.Module:
    """Undo enable: the model's own indexers, and this attention implementation of transformers."""
    _set(model, implementation)
    for module in model.modules():
        if type(module) is Indexer:
            module.__class__ = m3.MiniMaxM3VLIndexer
    return model
