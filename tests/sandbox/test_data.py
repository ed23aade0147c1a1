"""Values as data: what comes out of a sandbox, from anybody."""

from __future__ import annotations

import json
import math
import pickle
import struct
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.sandbox import _data
from ramet.sandbox._data import DataError, decode, encode

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS | st.binary() | st.binary().map(bytearray),
    lambda each: (
        st.lists(each)
        | st.lists(each).map(tuple)
        | st.dictionaries(st.text() | st.sampled_from(["$", "of"]), each)
    ),
    max_leaves=20,
)


def rendered(value: object) -> bytearray:
    return bytearray(b"".join(encode(value)))


def same(value: object) -> Any:
    return decode(rendered(value))


@given(VALUES)
def test_round_trip(value: object) -> None:
    found = same(value)
    assert found == value
    assert repr(found) == repr(value)  # also the kinds


@pytest.mark.parametrize("value", [math.inf, -math.inf, "\udcff", -0.0, 1 << 4000])
def test_scalars_that_are_rare(value: object) -> None:
    assert repr(same(value)) == repr(value)


def test_long_strings_are_no_part_of_the_text() -> None:
    value = ["é" * (8 << 20), "\udcff" * 2000, {"a": "x" * 1025}]
    assert same(value) == value
    assert len(encode(value)[1]) < 1000


def test_long_text() -> None:
    with pytest.raises(TypeError, match="bytes as JSON"):
        encode([1] * (2 << 20))
    with pytest.raises(DataError, match="too long"):
        decode(made([1] * (2 << 20)))


def test_not_a_number() -> None:
    assert math.isnan(same(math.nan))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.arange(12, dtype=">i2").reshape(3, 4)[::2, ::-1],
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(5.5),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array(["a", "bcd"]),
        np.array([b"a", b"bcd"]),
        np.array(["2026-01-01"], dtype="M8[D]"),
        np.array([3], dtype="m8[us]"),
        np.zeros((0, 3), dtype="f4"),
        np.array([1.5], dtype=np.longdouble),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_arrays(array: Any) -> None:
    found = same({"a": [array]})["a"][0]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert (found == array).all()
    found[...] = found  # it can be written to


def test_numbers_of_numpy_are_numbers() -> None:
    found = same([np.int64(3), np.float32(0.5), np.bool_(True)])
    assert found == [3, 0.5, True]
    assert [type(each) for each in found] == [int, float, bool]


def test_other_kinds_of_the_same() -> None:
    class Text(str):
        __slots__ = ()

    class Number(int):
        pass

    value = [Text("x"), Number(3), memoryview(b"abcd")[::2], MappingProxyType({"a": 1})]
    found = same(value)
    assert found == ["x", 3, bytearray(b"ac"), {"a": 1}]
    assert type(found[0]) is str
    assert type(found[1]) is int


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (object(), "object"),
        ({1, 2}, "set"),
        ({1: 2}, "strings for its keys"),
        (3j, "complex"),
        (np.array([object()]), "object"),
        (np.zeros(2, dtype=[("a", "i4")]), "array of"),
        (np.complex128(1), "complex"),
        (len, "builtin"),
    ],
    ids=repr,
)
def test_what_is_no_data(value: object, word: str) -> None:
    with pytest.raises(TypeError, match=word):
        encode([value])


def test_what_is_in_itself() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(RecursionError):
        encode(value)


def test_too_many_buffers() -> None:
    with pytest.raises(TypeError, match="join them"):
        encode([b""] * (_data._MOST_PARTS + 1))


# --- what others write ----------------------------------------------------------------------------


def made(node: object, *buffers: bytes) -> bytearray:
    """What somebody may write who knows the form."""
    parts = [json.dumps(node).encode(), *buffers]
    head = struct.pack("=8sQ", _data._MARK, len(parts))
    return bytearray(head + struct.pack(f"={len(parts)}Q", *map(len, parts)) + b"".join(parts))


def array(**changes: object) -> Mapping[str, object]:
    return {"$": "array", "of": 1, "dtype": "<i4", "shape": [2], **changes}


@pytest.mark.parametrize(
    "data",
    [
        bytearray(),
        bytearray(b"{}"),
        bytearray(pickle.dumps(3)),
        bytearray(16),
        made(1)[:20],
        made(1)[:-1],
        bytearray(struct.pack("=8sQQ", _data._MARK, 1, 1 << 63)),
        bytearray(struct.pack("=8sQ", _data._MARK, 1 << 63)),
        bytearray(struct.pack("=8sQ", _data._MARK, 0)),
        made({"$": "nothing", "of": []}),
        made({"$": ["tuple"], "of": []}),
        made({"$": "tuple"}),
        made({"$": "tuple", "of": "abc"}),
        made({"$": "dict", "of": [1]}),
        made({"$": "bytes", "of": 0}),
        made({"$": "bytes", "of": True}, b"a"),
        made({"$": "bytes", "of": 2}, b"a"),
        made({"$": "bytes", "of": -1}, b"a"),
        made([{"$": "bytes", "of": 1}] * 2, b"a"),
        made(array(dtype="|O8"), bytes(8)),
        made(array(dtype="<i4,<i4"), bytes(8)),
        made(array(dtype=["<i4"]), bytes(8)),
        made(array(dtype="|V8"), bytes(8)),
        made(array(dtype="<i3"), bytes(6)),
        made(array(shape=[3]), bytes(8)),
        made(array(shape=[-2]), bytes(8)),
        made(array(shape=[-1, -2]), bytes(8)),
        made(array(shape=[2.0]), bytes(8)),
        made(array(shape=2), bytes(8)),
        made(array(shape=[1] * 100), bytes(4)),
        made(array(shape=[10**4299] * 1000), bytes(4)),
        made(array(shape=[1 << 62] * 50_000), bytes(4)),
        made(array(shape=[0, 1 << 62]), b""),
    ],
)
def test_what_is_none(data: bytearray) -> None:
    with pytest.raises(DataError):
        decode(data)


def test_too_deep() -> None:
    text = b"[" * 200_000 + b"]" * 200_000
    head = struct.pack("=8sQQ", _data._MARK, 1, len(text))
    with pytest.raises(DataError):
        decode(bytearray(head + text))


@given(st.binary(max_size=200), st.integers(0, 1 << 64))
def test_anything(data: bytes, position: int) -> None:
    """Changed anywhere, it is a value or none, and nothing else happens."""
    whole = rendered({"a": [1, b"xy", (2.5, None)], "$": np.arange(3)})
    place = position % len(whole)
    whole[place : place + len(data)] = data
    with suppress(DataError):
        decode(whole)
