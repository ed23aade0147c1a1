"""Python values in memory files, for two processes of which each trusts the other.

A file has a header, the lengths of its parts, and the parts: a pickle, and the large buffers that
the pickle refers to (PEP 574), which are not copied when they are read. A file that was not
finished is told from one that was.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import struct
from typing import Any

_HEADER = struct.Struct("=8sQ")  # a mark, written last, and the number of parts
_DONE = b"ramet\0\0\1"
_ALIGNMENT = 64
_MOST_VECTORS = 1024  # IOV_MAX


class UnfinishedError(Exception):
    """The writer did not come to the end of the value."""


def new_file(name: str) -> int:
    """Make an empty memory file; close-on-exec."""
    return os.memfd_create(f"ramet-{name}")


def dump(value: object, fd: int) -> None:
    """Write a value.

    Functions and classes that pickle cannot find by name are carried by cloudpickle, where that is
    installed.

    Raises:
        Exception: what pickle raises for a value that it cannot carry.
    """
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    except (pickle.PicklingError, AttributeError, TypeError):
        cloudpickle = _cloudpickle()
        if cloudpickle is None:
            raise
        buffers.clear()
        data = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(data), *(buffer.raw() for buffer in buffers)]
    lengths = struct.pack(f"={len(parts)}Q", *(part.nbytes for part in parts))
    offset = _HEADER.size + len(lengths)
    os.pwrite(fd, lengths, _HEADER.size)
    for part in parts:
        offset = -(-offset // _ALIGNMENT) * _ALIGNMENT
        offset = _write(fd, part, offset)
    os.ftruncate(fd, max(offset, 1))
    os.pwrite(fd, _HEADER.pack(_DONE, len(parts)), 0)
    for buffer in buffers:
        buffer.release()


def load(fd: int) -> Any:
    """Read a value. It must come from a process that is trusted.

    Raises:
        UnfinishedError: the writer did not come to the end.
        Exception: what unpickling raises.
    """
    size = os.fstat(fd).st_size
    if size < _HEADER.size:
        raise UnfinishedError
    # Private: what refers to the buffers may write to them.
    memory = memoryview(mmap.mmap(fd, size, mmap.MAP_PRIVATE))
    mark, count = _HEADER.unpack_from(memory)
    if mark != _DONE:
        raise UnfinishedError
    lengths = struct.unpack_from(f"={count}Q", memory, _HEADER.size)
    offset = _HEADER.size + 8 * count
    parts = []
    for length in lengths:
        offset = -(-offset // _ALIGNMENT) * _ALIGNMENT
        parts.append(memory[offset : offset + length])
        offset += length
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 - of a process that is ours


def _write(fd: int, part: memoryview, offset: int) -> int:
    while part.nbytes:
        written = os.pwrite(fd, part, offset)
        part = part[written:]
        offset += written
    return offset


def _cloudpickle() -> Any:
    with contextlib.suppress(ImportError):
        import cloudpickle  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: PLC0415

        return cloudpickle
    return None
