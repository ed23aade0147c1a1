"""Values as data, for what comes out of a sandbox: JSON, and raw buffers beside it.

Nothing that is read makes an object of any other kind or runs code, and what it costs is bounded
by its size: so it can come from anybody. Dictionaries have strings for their keys, since numbers
can be chosen so that a dictionary of them takes for ever.
"""

from __future__ import annotations

import json
import math
import re
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

_HEADER = struct.Struct("=8sQ")  # a mark, and the number of parts
_LENGTH = struct.Struct("=Q")
_MARK = b"ramet\0\0\2"
_MOST_PARTS = 1 << 16
_MOST_TEXT = 4 << 20  # a list takes thirty times what it takes as text
_SHORT = 1 << 10  # what strings may have that are part of the text
_MOST_AXES = 64  # of an array (NPY_MAXDIMS)
_KIND = "$"  # the key by which an object is not a dictionary
_DTYPE = re.compile(r"[<>|=]?(?:[biufcSU][0-9]{1,9}|[mM]8(?:\[[0-9a-zA-Z]{1,9}\])?)")

_Part = bytes | memoryview


class DataError(ValueError):
    """What is read is none of this."""


def encode(value: object) -> list[_Part]:
    """Render a value.

    Args:
        value: None, a bool, int, float, str; bytes, bytearray, memoryview; lists, tuples, and
            dictionaries with strings for keys, of these; arrays and numbers of numpy, without
            objects in them.

    Returns:
        Parts, to be written one after the other.

    Raises:
        TypeError: something else is in it.
        RecursionError: it is in itself, or too deep.
    """
    buffers: list[_Part] = []
    text = json.dumps(_plain(value, buffers)).encode()
    if len(text) > _MOST_TEXT:
        raise TypeError(
            f"a result takes {len(text)} bytes as JSON, and may take {_MOST_TEXT}: bytes, long "
            "strings and arrays do not count"
        )
    parts = [text, *buffers]
    if len(parts) > _MOST_PARTS:
        raise TypeError(f"a result has at most {_MOST_PARTS} buffers: join them")
    lengths = [_LENGTH.pack(len(part)) for part in parts]
    return [_HEADER.pack(_MARK, len(parts)) + b"".join(lengths), *parts]


def _plain(value: object, buffers: list[_Part]) -> object:
    """Turn a value into what JSON has."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind) and not (isinstance(value, str) and len(value) > _SHORT):
            return kind(value)  # and not a class made of it
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return _plain(value.item(), buffers)
    if isinstance(value, list):
        return [_plain(each, buffers) for each in value]
    if isinstance(value, Mapping):
        return _plain_dict(value, buffers)
    return {_KIND: _kind(value, numpy), **_marked(value, buffers)}


def _kind(value: object, numpy: Any) -> str:
    """Name what JSON does not have.

    Raises:
        TypeError: it is no data.
    """
    for kind, name in (
        (str, "str"),
        (tuple, "tuple"),
        (bytes, "bytes"),
        (bytearray | memoryview, "bytearray"),
    ):
        if isinstance(value, kind):
            return name
    if numpy is not None and isinstance(value, numpy.ndarray):
        return "array"
    raise TypeError(
        f"a result is data: no {type(value).__qualname__}, but None, numbers, strings, bytes, "
        "lists, tuples, dictionaries, and arrays of numpy"
    )


def _plain_dict(value: Mapping[Any, object], buffers: list[_Part]) -> object:
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"a dictionary in a result has strings for its keys, not {key!r}")
    found = {str(key): _plain(each, buffers) for key, each in value.items()}
    return {_KIND: "dict", "of": found} if _KIND in found else found


def _marked(value: Any, buffers: list[_Part]) -> dict[str, object]:
    """Render what JSON does not have."""
    if isinstance(value, tuple):
        return {"of": [_plain(each, buffers) for each in value]}
    if isinstance(value, str):
        return {"of": _buffer(value.encode(errors="surrogatepass"), buffers)}
    if isinstance(value, bytes | bytearray):
        return {"of": _buffer(memoryview(value), buffers)}
    if isinstance(value, memoryview):
        return {"of": _buffer(value.tobytes(), buffers)}
    kind = value.dtype.str
    if not _DTYPE.fullmatch(kind):
        raise TypeError(f"a result is data: no array of {value.dtype}")
    flat = value.reshape(-1).view("u1")  # in the order of C, and no copy where it lies so
    return {"of": _buffer(memoryview(flat), buffers), "dtype": kind, "shape": value.shape}


def _buffer(part: _Part, buffers: list[_Part]) -> int:
    buffers.append(part)
    return len(buffers)


# --- reading --------------------------------------------------------------------------------------


def decode(data: bytearray) -> Any:
    """Read a value.

    Args:
        data: what was written, from whomever. Arrays in the value use its memory.

    Raises:
        DataError: it is no value.
    """
    try:
        parts = _split(memoryview(data))
        if len(parts[0]) > _MOST_TEXT:
            raise DataError("it is too long")
        return _Reader(parts).read(json.loads(bytes(parts[0])))
    except _FAULTS as error:
        raise DataError(f"this is no value: {error}") from None


_FAULTS = (ValueError, TypeError, LookupError, RecursionError, OverflowError, ImportError)


def _split(data: memoryview) -> list[memoryview]:
    if len(data) < _HEADER.size:
        raise DataError("it is cut off")
    mark, count = _HEADER.unpack_from(data)
    if mark != _MARK or not 0 < count <= _MOST_PARTS:
        raise DataError("it has another header")
    offset = _HEADER.size + count * _LENGTH.size
    if offset > len(data):
        raise DataError("it is cut off")
    parts = []
    for (length,) in _LENGTH.iter_unpack(data[_HEADER.size : offset]):
        if length > len(data) - offset:
            raise DataError("it is cut off")
        parts.append(data[offset : offset + length])
        offset += length
    return parts


class _Reader:
    """Turns what JSON has into the value."""

    def __init__(self, parts: list[memoryview]) -> None:
        self._parts = parts
        self._left = set(range(1, len(parts)))
        self._kinds: dict[str, Callable[[dict[str, Any]], Any]] = {
            "tuple": lambda node: tuple(self._list(node["of"])),
            "dict": lambda node: self._dict(node["of"]),
            "str": lambda node: str(self._part(node["of"]), "utf-8", "surrogatepass"),
            "bytes": lambda node: bytes(self._part(node["of"])),
            "bytearray": lambda node: bytearray(self._part(node["of"])),
            "array": self._array,
        }

    def read(self, node: Any) -> Any:
        if isinstance(node, list):
            return self._list(node)
        if not isinstance(node, dict):
            return node
        if _KIND in node:
            return self._kinds[node[_KIND]](node)
        return self._dict(node)

    def _list(self, nodes: Any) -> list[Any]:
        if not isinstance(nodes, list):
            raise DataError("no list is where one should be")
        return [self.read(each) for each in nodes]

    def _dict(self, node: Any) -> dict[str, Any]:
        if not isinstance(node, dict):
            raise DataError("no dictionary is where one should be")
        return {key: self.read(each) for key, each in node.items()}

    def _part(self, index: Any) -> memoryview:
        """Give a buffer, to one alone: or a short text could be a large value."""
        if type(index) is not int or index not in self._left:
            raise DataError(f"there is no buffer {index!r}, or no more")
        self._left.remove(index)
        return self._parts[index]

    def _array(self, node: dict[str, Any]) -> Any:
        import numpy as np  # noqa: PLC0415

        kind, shape, data = node["dtype"], node["shape"], self._part(node["of"])
        if not isinstance(kind, str) or not _DTYPE.fullmatch(kind):
            raise DataError(f"there is no such kind of array: {kind!r}")
        # Of many large numbers even the product takes for ever.
        if (
            not isinstance(shape, list)
            or len(shape) > _MOST_AXES
            or not all(type(each) is int and 0 <= each < 1 << 63 for each in shape)
        ):
            raise DataError("there is no such shape")
        dtype = np.dtype(kind)
        if math.prod(shape) * dtype.itemsize != len(data):
            raise DataError(f"{len(data)} bytes are no array {shape} of {kind}")
        if not len(data):
            return np.zeros(shape, dtype)
        return np.frombuffer(data, dtype=dtype).reshape(shape)
