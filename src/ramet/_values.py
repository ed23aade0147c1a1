"""Python values in memory files, for two processes of which each trusts the other.

A file has a header, the lengths of its parts, and the parts: a pickle, and the large buffers that
the pickle refers to (PEP 574), which are not copied when they are read. A file that was not
finished is told from one that was.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
from collections.abc import Sequence
from typing import Any

from ramet import _native
from ramet._native import Descriptor

_HEADER = struct.Struct("=8sQ")  # a mark, written last, and the number of parts
_DONE = b"ramet\0\0\1"
_LENGTH = 8
_ALIGNMENT = 64
_MAPPED = 1 << 17  # bytes from which on a file is mapped; a copy of fewer is faster


class UnfinishedError(Exception):
    """The writer did not come to the end of the value."""


def new_file(name: str) -> Descriptor:
    """Make an empty memory file; close-on-exec, and not in the place of a standard stream."""
    return Descriptor.memory(f"ramet-{name}".encode())


def encode(value: object, *, by_value: bool = False) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Make the parts of a value: the pickle, and the large buffers that it refers to.

    Functions and classes that pickle cannot find by name are carried by cloudpickle, where that is
    installed.

    Args:
        value: the value.
        by_value: let cloudpickle have it in any case; what is of the main module comes along.

    Raises:
        Exception: what pickle raises for a value that it cannot carry.
    """
    buffers: list[pickle.PickleBuffer] = []
    cloudpickle = find_cloudpickle() if by_value else None
    try:
        if cloudpickle is None:
            return pickle.dumps(value, protocol=5, buffer_callback=buffers.append), buffers
    except (pickle.PicklingError, AttributeError, TypeError):
        cloudpickle = find_cloudpickle()
        if cloudpickle is None:
            raise
        buffers.clear()
    return cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append), buffers


def write(data: bytes, buffers: Sequence[pickle.PickleBuffer], fd: int) -> None:
    """Write the parts of a value to a file that is empty."""
    lengths = [len(data)]
    offset = _first(1 + len(buffers))
    _write(fd, data, offset)
    for buffer in buffers:
        offset = _align(offset + lengths[-1])
        with buffer.raw() as part:
            lengths.append(part.nbytes)
            _write(fd, part, offset)
    os.pwrite(fd, struct.pack(f"=8sQ{len(lengths)}Q", _DONE, len(lengths), *lengths), 0)


def dump(value: object, fd: int) -> None:
    """Write a value to a file that is empty.

    Raises:
        Exception: as `encode`; the file is as it was.
    """
    write(*encode(value), fd)


def load(fd: int) -> Any:
    """Read a value. It must come from a process that is trusted.

    Raises:
        UnfinishedError: the writer did not come to the end.
        Exception: what unpickling raises.
    """
    size = os.fstat(fd).st_size
    if size < _HEADER.size:
        raise UnfinishedError
    # What refers to the buffers may write to them, either way.
    memory = memoryview(bytearray(size) if size < _MAPPED else _native.Mapping(fd, size))
    if size < _MAPPED:
        os.preadv(fd, [memory], 0)
    mark, count = _HEADER.unpack_from(memory)
    if mark != _DONE:
        raise UnfinishedError
    parts = []
    offset = _first(count)
    for length in struct.unpack_from(f"={count}Q", memory, _HEADER.size):
        parts.append(memory[offset : offset + length])
        offset = _align(offset + length)
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 - of a process that is ours


def _align(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _first(count: int) -> int:
    """Where the first of so many parts begins."""
    return _align(_HEADER.size + _LENGTH * count)


def _write(fd: int, part: bytes | memoryview, offset: int) -> None:
    written = os.pwrite(fd, part, offset)
    while written < len(part):
        written += os.pwrite(fd, memoryview(part)[written:], offset + written)


def find_cloudpickle() -> Any:
    """Import cloudpickle; None if it is not installed."""
    with contextlib.suppress(ImportError):
        import cloudpickle  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: PLC0415

        return cloudpickle
    return None
