"""Records."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Mapping
from types import MappingProxyType

import pytest

from ramet._record import Record


class Point(Record):
    """Of two numbers, and more."""

    _hidden = frozenset(("z",))

    x: int
    y: int = 2
    z: Mapping[str, int] = MappingProxyType({})


class Named(Point, kw_only=True):
    """One with a name."""

    name: str = ""


def test_places() -> None:
    assert Point(1, 3) == Point(x=1, y=3)


def test_fields() -> None:
    point = Named(x=1, name="a")
    assert point.fields() == {"x": 1, "y": 2, "z": {}, "name": "a"}
    assert repr(point) == "Named(x=1, y=2, name='a')"


def test_equality() -> None:
    assert Point(x=1) == Point(x=1, y=2, z={})
    assert hash(Point(x=1)) == hash(Point(x=1, y=2, z={}))
    assert Point(x=1) != Point(x=2)
    assert Point(x=1) != Named(x=1)


def test_replace() -> None:
    assert Named(x=1, name="a").replace(y=3) == Named(x=1, y=3, name="a")
    if sys.version_info >= (3, 13):
        assert copy.replace(Point(x=1), x=2) == Point(x=2)


def test_pickles() -> None:
    assert pickle.loads(pickle.dumps(Named(x=1))) == copy.deepcopy(Named(x=1)) == Named(x=1)  # noqa: S301


def test_mistakes() -> None:
    with pytest.raises(TypeError, match="Point has no w"):
        Point(x=1, w=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Point has x twice"):
        Point(1, x=2)  # type: ignore[misc]
    with pytest.raises(TypeError, match="Point takes 3 arguments without"):
        Point(1, 2, {}, 4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Point needs x"):
        Point()  # type: ignore[call-arg]
    point = Point(x=1)
    with pytest.raises(AttributeError, match="use replace"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="can't be deleted"):
        del point.y
