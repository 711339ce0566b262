"""Arrays of other libraries as msa_tensor: pointer, dtype, shape and strides, never a copy.

PyTorch tensors are read directly (their fp8 and bf16 have no NumPy form); anything else that speaks
DLPack (NumPy, CuPy, JAX) through its capsule.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy

from . import _structs
from ._library import InvalidArgument

# (DLPack type code, bits): 0 signed, 1 unsigned, 2 float, 4 bfloat, 10 float8_e4m3fn
_FROM_DLPACK = {(0, 8): _structs.I8, (0, 32): _structs.I32, (0, 64): _structs.I64, (1, 8): _structs.U8,
                (2, 32): _structs.F32, (2, 16): _structs.F16, (4, 16): _structs.BF16,
                (10, 8): _structs.FP8_E4M3}
_NUMPY = {_structs.F32: numpy.float32, _structs.F16: numpy.float16, _structs.I32: numpy.int32,
          _structs.U8: numpy.uint8, _structs.I8: numpy.int8}
_DEVICES = {1: "cpu", 2: "cuda", 3: "cpu"}  # kDLCPU, kDLCUDA, kDLCUDAHost


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


class Array:
    """One argument: its view for the library, where it lies, and the object that owns the memory."""

    def __init__(self, name: str, source: Any) -> None:
        self.owner = source
        self.tensor = _structs.Tensor()
        if type(source).__module__.split(".")[0] == "torch" or hasattr(source, "data_ptr"):
            self._from_torch(name, source)
        elif hasattr(source, "__dlpack__"):
            self._from_dlpack(name, source)
        else:
            raise InvalidArgument(
                f"{name} = {type(source).__name__}, must be a PyTorch tensor or an array with __dlpack__")

    def _set(self, name: str, data: int, dtype: int, shape: Any, strides: Any) -> None:
        if len(shape) > 4:
            raise InvalidArgument(f"{name}: n_dims = {len(shape)}, must be at most 4")
        self.tensor.data = data
        self.tensor.dtype = dtype
        self.tensor.n_dims = len(shape)
        self.tensor.shape[:] = [*shape] + [1] * (4 - len(shape))
        self.tensor.stride[:] = [*strides] + [0] * (4 - len(shape))

    def _from_torch(self, name: str, source: Any) -> None:
        import torch

        dtypes = {torch.float32: _structs.F32, torch.bfloat16: _structs.BF16,
                  torch.float16: _structs.F16, torch.float8_e4m3fn: _structs.FP8_E4M3,
                  torch.uint8: _structs.U8, torch.int8: _structs.I8, torch.int32: _structs.I32, torch.int64: _structs.I64}
        if source.dtype not in dtypes:
            raise InvalidArgument(f"{name}: dtype = {source.dtype}, no operator takes it")
        if source.device.type not in ("cpu", "cuda"):
            raise InvalidArgument(f"{name}: device = {source.device}, must be cpu or cuda")
        self.device = (source.device.type, source.device.index or 0)
        self._set(name, source.data_ptr(), dtypes[source.dtype], source.shape, source.stride())

    def _from_dlpack(self, name: str, source: Any) -> None:
        self._capsule = source.__dlpack__()  # frees the exported view when it goes
        view = _DLTensor.from_address(_capsule_pointer(self._capsule, b"dltensor"))
        dtype = _FROM_DLPACK.get((view.code, view.bits)) if view.lanes == 1 else None
        if dtype is None:
            raise InvalidArgument(f"{name}: DLPack type {view.code} of {view.bits} bits, "
                                  "no operator takes it")
        if view.device_type not in _DEVICES:
            raise InvalidArgument(f"{name}: DLPack device {view.device_type}, must be cpu or cuda")
        shape = view.shape[: view.ndim]
        strides = view.strides[: view.ndim] if view.strides else _contiguous(shape)
        self.device = (_DEVICES[view.device_type], view.device_id)
        self._set(name, (view.data or 0) + view.byte_offset, dtype, shape, strides)

    def empty(self, shape: tuple[int, ...], dtype: int | None = None) -> Any:
        """A new array of the same library and device; dtype as this one's unless given."""
        dtype = self.tensor.dtype if dtype is None else dtype
        if hasattr(self.owner, "data_ptr"):
            import torch

            dtypes = {_structs.F32: torch.float32, _structs.BF16: torch.bfloat16,
                      _structs.F16: torch.float16, _structs.I32: torch.int32,
                      _structs.U8: torch.uint8, _structs.I8: torch.int8}
            return torch.empty(shape, dtype=dtypes[dtype], device=self.owner.device)
        if self.device[0] != "cpu":
            raise InvalidArgument("out = None: results on a device are allocated for PyTorch tensors "
                                  "only, pass arrays to write into")
        return numpy.empty(shape, _NUMPY[dtype])

    def offsets(self, end: int) -> Any:
        """The offsets [0, end] of a batch of one sequence."""
        if hasattr(self.owner, "data_ptr"):
            import torch

            return torch.arange(2, dtype=torch.int32, device=self.owner.device) * end
        return numpy.array([0, end], numpy.int32)


def _contiguous(shape: Any) -> list[int]:
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * shape[i + 1]
    return strides


def pointer(name: str, source: Any, dtype: int, keep: list[Array]) -> int | None:
    """Address of a contiguous 1-D or 2-D array of this dtype; None stays None."""
    if source is None:
        return None
    array = Array(name, source)
    t = array.tensor
    shape, strides = t.shape[: t.n_dims], t.stride[: t.n_dims]
    steps = zip(shape, strides, _contiguous(shape))
    if t.dtype != dtype or any(extent > 1 and step != wanted for extent, step, wanted in steps):
        kind = {_structs.I32: "int32", _structs.F32: "float32"}[dtype]
        raise InvalidArgument(f"{name}: must be a contiguous {kind} array")
    keep.append(array)
    return t.data
