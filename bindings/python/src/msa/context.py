"""Contexts: which backend runs the operators, on how many threads, device and stream."""

from __future__ import annotations

import ctypes
import threading

from . import _structs
from ._library import check, library

# CUDA's name for the default stream; 0 would ask the library for a stream of its own.
_DEFAULT_STREAM = 1


class Context:
    """A libmsa context; freed with the object. One thread at a time may use it.

    Args:
        backend: "cpu", "cuda" or "ref" (the specification, slow); None: the environment's, then "cpu".
        n_threads: CPU threads; 0: every core this process may use.
        isa: instruction set of the cpu backend ("amx", "avx512", ...); None: the best one.
        device: CUDA device number.
        stream: CUDA stream handle to work on; None: a stream of its own.

    Raises:
        InvalidArgument: unknown backend or ISA, a thread count outside 0..1024.
        Unsupported: an ISA or device that this machine lacks.

    Source: include/msa/context.h.
    """

    def __init__(self, backend: str | None = None, *, n_threads: int = 0, isa: str | None = None,
                 device: int = 0, stream: int | None = None) -> None:
        self._handle = ctypes.c_void_p()
        args = _structs.ContextArgs()
        args.backend = backend.encode() if backend else None
        args.cpu_isa = isa.encode() if isa else None
        args.n_threads = n_threads
        args.device = device
        args.stream = stream
        check(library.msa_context_create(ctypes.byref(self._handle), ctypes.byref(args)))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            library.msa_context_destroy(self._handle)

    @property
    def handle(self) -> ctypes.c_void_p:
        """The msa_context pointer, for other users of the C library."""
        return self._handle

    @property
    def isa(self) -> str:
        """Instruction set or device in use, as "amx" or "sm_90 NVIDIA H200"."""
        return library.msa_context_isa(self._handle).decode()

    @property
    def n_threads(self) -> int:
        return library.msa_context_threads(self._handle)


_local = threading.local()


def default_context(device_type: str, device: int) -> Context:
    """The calling thread's context for tensors on this device; for CUDA, on PyTorch's current stream."""
    stream = None
    if device_type == "cuda":
        import torch

        stream = torch.cuda.current_stream(device).cuda_stream or _DEFAULT_STREAM
    contexts = _local.__dict__.setdefault("contexts", {})
    key = (device_type, device, stream)
    if key not in contexts:
        backend = "cuda" if device_type == "cuda" else None
        contexts[key] = Context(backend, device=device, stream=stream)
    return contexts[key]
