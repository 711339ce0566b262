"""Finding and opening libmsa, and turning its failures into exceptions."""

from __future__ import annotations

import ctypes
import os
import pathlib

from . import _structs


class MsaError(RuntimeError):
    """A failure of libmsa; the text names the operator, the argument, its value and the rule."""


class InvalidArgument(MsaError, ValueError):
    """An argument breaks a rule (MSA_EINVAL)."""


class OutOfMemory(MsaError, MemoryError):
    """Host or device memory ran out (MSA_ENOMEM, MSA_EDEVMEM)."""


class Unsupported(MsaError, NotImplementedError):
    """A valid request that the backend or this machine cannot serve (MSA_EUNSUPPORTED)."""


_EXCEPTIONS = {-1: InvalidArgument, -2: OutOfMemory, -3: OutOfMemory, -4: Unsupported}


def _open() -> ctypes.CDLL:
    """The library named by MSA_LIBRARY, else the one in this package, else the system's."""
    packaged = pathlib.Path(__file__).resolve().parent / "libmsa.so.0"
    name = os.environ.get("MSA_LIBRARY") or (str(packaged) if packaged.exists() else "libmsa.so.0")
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise ImportError(
            f"msa: cannot open {name}: {error}; install the wheel, or set MSA_LIBRARY to a built libmsa.so"
        ) from error
    _structs.declare(library)
    return library


library = _open()


def check(status: int) -> None:
    """Raise the exception of a failed call, with the library's message."""
    if status != 0:
        text = library.msa_last_error().decode(errors="replace")
        raise _EXCEPTIONS.get(status, MsaError)(text or f"status {status}")
