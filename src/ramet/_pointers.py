"""Functions and arguments as addresses.

Knows the objects that have one (ctypes, cffi, numba, buffers), nothing of clone. Neither ctypes
nor cffi is imported here: whoever passes one of their objects has done so already.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

from ramet import _native

_WORD = 1 << 64
_INT = 4  # sizeof(int)


class PythonCallableError(TypeError):
    """A Python function was given where a C function is needed."""


def function_address(fn: object) -> int:
    """Find the address of a C function.

    Args:
        fn: an address, a ctypes or cffi function pointer, or anything with an ``address``
            (a numba cfunc).

    Returns:
        The address, not 0.

    Raises:
        PythonCallableError: `fn` is, or leads to, a Python function.
        TypeError: `fn` is none of these.
        ValueError: the address is NULL, negative, or longer than a word.
    """
    if type(fn) is int:
        address = fn
    elif _is_ctypes_function(fn):
        _refuse_callback(fn, _is_ctypes_callback(fn))
        address = _ctypes_value(fn)
    elif _is_cffi(fn):
        _refuse_callback(fn, "__CDataOwn" in type(fn).__name__)
        address = _cffi_value(fn)
    elif isinstance(getattr(fn, "address", None), int):
        address = fn.address  # type: ignore[attr-defined]
    elif callable(fn):
        raise PythonCallableError(f"{fn!r} is a Python callable")
    else:
        raise TypeError(
            "fn must be an address, a ctypes or cffi function pointer, or have an .address, "
            f"not {type(fn).__name__}"
        )
    if not 0 < address < _WORD:
        raise ValueError(f"fn must be the address of a function, not {address:#x}")
    return address


def pointer(value: object, name: str) -> tuple[int, object]:
    """Find what address an argument stands for.

    Args:
        value: None (0), an int (as it is, -2**63 to 2**64-1), a ctypes pointer (where it points)
            or other ctypes object (its address), a cffi pointer or array, or a writable,
            contiguous buffer (the address of its first byte).
        name: the parameter's name, for errors.

    Returns:
        The address, and an object whose life keeps it good.

    Raises:
        TypeError: `value` is none of these, or a buffer that is read-only or not contiguous.
        ValueError: an int that does not fit into a word.
    """
    if value is None:
        return 0, None
    if isinstance(value, int):
        if not -_WORD // 2 <= value < _WORD:
            raise ValueError(f"{name} does not fit into 64 bits: {value:#x}")
        return value % _WORD, None
    if _is_ctypes_pointer(value):
        return _ctypes_value(value), value
    if _is_cffi(value):
        return _cffi_value(value), value
    try:
        view = memoryview(value)  # type: ignore[arg-type]
        return _native.address(view), view
    except (TypeError, BufferError) as error:
        raise TypeError(
            f"{name} must be None, an int, a ctypes or cffi object or a writable contiguous "
            f"buffer, not {type(value).__name__} ({error})"
        ) from None


def word(value: object, name: str) -> tuple[int, object]:
    """Find the address where the kernel is to store a thread id.

    Args:
        value: as of `pointer`. None stays 0.
        name: the parameter's name, for errors.

    Returns:
        As of `pointer`.

    Raises:
        TypeError: as of `pointer`.
        ValueError: NULL, fewer than 4 bytes, not aligned, or not writable memory.
    """
    address, owner = pointer(value, name)
    if value is None:
        return address, owner
    if address == 0:
        raise ValueError(f"{name} must not be NULL")
    if isinstance(owner, memoryview) and owner.nbytes < _INT:
        raise ValueError(f"{name} must have the {_INT} bytes of an int, not {owner.nbytes}")
    error = _native.word_error(address)
    if error == errno.EINVAL:
        raise ValueError(f"{name} must be aligned to {_INT} bytes: {address:#x}")
    if error:
        raise ValueError(
            f"{name} must be in memory that can be written to: {address:#x} ({os.strerror(error)})"
        )
    return address, owner


def c_string(value: object) -> bytes:
    """Encode a string or path for the kernel.

    Raises:
        ValueError: it has a NUL in it.
        TypeError: it is none.
    """
    encoded = os.fsencode(value)  # type: ignore[arg-type] # which it checks
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    return encoded


def _refuse_callback(fn: object, is_callback: bool) -> None:
    if is_callback:
        raise PythonCallableError(f"{fn!r} calls back into Python")


# --- ctypes -----------------------------------------------------------------------------------

# By their names, since at the end of the interpreter, from a __del__, sys.modules is empty.
_POINTERS = {"CFuncPtr", "_Pointer", "c_void_p", "c_char_p", "c_wchar_p"}


def _ctypes_bases(value: object) -> set[str]:
    """Name the types of ctypes that an object is made of."""
    return {kind.__name__ for kind in type(value).__mro__ if kind.__module__ in _CTYPES}


_CTYPES = {"ctypes", "_ctypes"}
_FUNCFLAG_PYTHONAPI = 4  # of ctypes.pythonapi: functions that need the GIL


def _is_ctypes_function(value: object) -> bool:
    return "CFuncPtr" in _ctypes_bases(value)


def _is_ctypes_callback(fn: Any) -> bool:
    """Whether a function pointer calls Python: it, or what it was taken out of, keeps the thunk."""
    if getattr(type(fn), "_flags_", 0) & _FUNCFLAG_PYTHONAPI:
        return True
    owner = fn
    while owner is not None:
        if _has_thunk(owner._objects):
            return True
        owner = owner._b_base_
    return False


def _has_thunk(kept: object) -> bool:
    if isinstance(kept, dict):
        return any(map(_has_thunk, kept.values()))
    if isinstance(kept, tuple | list):
        return any(map(_has_thunk, kept))
    inner = getattr(kept, "_objects", None)
    return type(kept).__name__ == "CThunkObject" or (inner is not None and _has_thunk(inner))


def _is_ctypes_pointer(value: object) -> bool:
    return not _POINTERS.isdisjoint(_ctypes_bases(value)) or _is_reference(value)


def _is_reference(value: object) -> bool:
    return type(value).__name__ == "CArgObject"  # what byref() gives


def _ctypes_value(value: Any) -> int:
    if _is_reference(value):
        ctypes: Any = sys.modules["ctypes"]
        address: int | None = ctypes.cast(value, ctypes.c_void_p).value
        return address or 0
    return int.from_bytes(memoryview(value).tobytes(), sys.byteorder)  # what the object holds


# --- cffi -------------------------------------------------------------------------------------


def _is_cffi(value: object) -> bool:
    return type(value).__module__ == "_cffi_backend"


def _cffi_value(value: Any) -> int:
    backend: Any = sys.modules["_cffi_backend"]
    try:
        return int(backend.cast(backend.new_primitive_type("uintptr_t"), value))
    except TypeError as error:
        raise TypeError(f"{value!r} is not a pointer: {error}") from None
