"""The C structures of include/msa, field by field, and the functions this package calls."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p

# msa_dtype
F32, BF16, F16, FP8_E4M3, U8, I32, I64, I8 = range(8)



class Tensor(ctypes.Structure):
    """msa_tensor: pointer, dtype, extents and strides in elements."""

    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int32),
        ("n_dims", c_int32),
        ("shape", c_int64 * 4),
        ("stride", c_int64 * 4),
    ]


class Args(ctypes.Structure):
    """Start of every argument structure: zeroed, with its own size."""

    def __init__(self) -> None:
        super().__init__()
        self.struct_size = ctypes.sizeof(self)


class ContextArgs(Args):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("allocator", c_void_p),
        ("backend", c_char_p),
        ("cpu_isa", c_char_p),
        ("n_threads", c_int32),
        ("device", c_int32),
        ("stream", c_void_p),
    ]


class Plan(Args):
    _fields_ = [("struct_size", c_uint32), ("op", c_uint32), ("workspace_bytes", c_size_t)]


class KvView(ctypes.Structure):
    _fields_ = [
        ("k", Tensor),
        ("v", Tensor),
        ("k_index", Tensor),
        ("page_table", c_void_p),
        ("page_table_stride", c_int64),
        ("cu_seqlens_k", c_void_p),
        ("kv_lens", c_void_p),
        ("n_seqs", c_int32),
        ("k_scale", c_float),
        ("v_scale", c_float),
        ("k_index_scale", c_float),
    ]


class Index8(ctypes.Structure):
    _fields_ = [("keys", Tensor), ("bounds", Tensor)]


class SelectArgs(Args):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("q_index", Tensor),
        ("kv", KvView),
        ("cu_seqlens_q", c_void_p),
        ("block_size", c_int32),
        ("topk", c_int32),
        ("n_init", c_int32),
        ("n_local", c_int32),
        ("index_scale", c_float),
        ("settled", c_int32),
        ("blocks", Tensor),
        ("block_scores", Tensor),
        ("index_lse", Tensor),
        ("index8", Index8),
        ("n_rescored", Tensor),
    ]


class IndexQuantizeArgs(Args):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("kv", KvView),
        ("cu_seqlens_q", c_void_p),
        ("n_tokens", c_int64),
        ("block_size", c_int32),
        ("reserved", c_int32),
        ("index8", Index8),
    ]


class BlockTopkArgs(Args):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("scores", Tensor),
        ("n_visible", c_void_p),
        ("topk", c_int32),
        ("n_init", c_int32),
        ("n_local", c_int32),
        ("reserved", c_int32),
        ("blocks", Tensor),
    ]


class AttendArgs(Args):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("q", Tensor),
        ("kv", KvView),
        ("cu_seqlens_q", c_void_p),
        ("blocks", Tensor),
        ("block_size", c_int32),
        ("scale", c_float),
        ("out", Tensor),
        ("lse", Tensor),
    ]


class SelectAttendArgs(Args):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("select", POINTER(SelectArgs)),
        ("attend", POINTER(AttendArgs)),
    ]


class DenseAttendArgs(Args):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("q", Tensor),
        ("kv", KvView),
        ("cu_seqlens_q", c_void_p),
        ("block_size", c_int32),
        ("scale", c_float),
        ("window", c_int64),
        ("n_sink_tokens", c_int64),
        ("sink_logit", c_void_p),
        ("out", Tensor),
        ("lse", Tensor),
    ]


class AttendMergeArgs(Args):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("out_a", Tensor),
        ("lse_a", Tensor),
        ("out_b", Tensor),
        ("lse_b", Tensor),
        ("out", Tensor),
        ("lse", Tensor),
    ]


class KvAppendArgs(Args):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("k", Tensor),
        ("v", Tensor),
        ("k_index", Tensor),
        ("cu_seqlens_q", c_void_p),
        ("kv", KvView),
        ("block_size", c_int32),
        ("reserved", c_int32),
    ]


# Operators with a plan: name -> argument structure. The others run at once.
PLANNED = {"select": SelectArgs, "attend": AttendArgs, "select_attend": SelectAttendArgs,
           "dense_attend": DenseAttendArgs}
IMMEDIATE = {"block_topk": BlockTopkArgs, "attend_merge": AttendMergeArgs,
             "kv_append": KvAppendArgs, "index_quantize": IndexQuantizeArgs}


def declare(library: ctypes.CDLL) -> None:
    """Give every function its C signature."""
    library.msa_last_error.restype = c_char_p
    library.msa_last_error.argtypes = []
    library.msa_context_create.restype = c_int32
    library.msa_context_create.argtypes = [POINTER(c_void_p), POINTER(ContextArgs)]
    library.msa_context_destroy.restype = None
    library.msa_context_destroy.argtypes = [c_void_p]
    library.msa_context_isa.restype = c_char_p
    library.msa_context_isa.argtypes = [c_void_p]
    library.msa_context_threads.restype = c_int32
    library.msa_context_threads.argtypes = [c_void_p]
    for name, args in PLANNED.items():
        plan = getattr(library, f"msa_{name}_plan")
        plan.restype = c_int32
        plan.argtypes = [c_void_p, POINTER(args), POINTER(Plan)]
        run = getattr(library, f"msa_{name}")
        run.restype = c_int32
        run.argtypes = [c_void_p, POINTER(Plan), POINTER(args), c_void_p, c_size_t]
    for name, args in IMMEDIATE.items():
        run = getattr(library, f"msa_{name}")
        run.restype = c_int32
        run.argtypes = [c_void_p, POINTER(args)]
