"""MiniMax Sparse Attention: exact block-sparse attention on CPUs and NVIDIA Hopper.

    blocks = msa.select(q_index, msa.KvView(k_index=k_index), topk=16)
    out = msa.attend(q, msa.KvView(k=k, v=v), blocks)

Modules: operators (the functions above, on any array), torch_ops (PyTorch custom ops), hf (Hugging
Face's MiniMax-M3 on these operators). PyTorch and transformers are needed by those two only.
"""

from ._library import InvalidArgument, MsaError, OutOfMemory, Unsupported
from .context import Context
from .operators import (Index8, KvView, attend, attend_merge, block_topk, dense_attend, index_quantize,
                        kv_append, select, select_attend)

__all__ = ["Context", "Index8", "InvalidArgument", "KvView", "MsaError", "OutOfMemory", "Unsupported",
           "attend", "attend_merge", "block_topk", "dense_attend", "index_quantize", "kv_append", "select",
           "select_attend"]
__version__ = "0.1.0"
