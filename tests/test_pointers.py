"""What clone takes as a function and as an argument."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import os
import re
import sys
import weakref
from collections.abc import Callable
from typing import Any

import cffi  # type: ignore[import-untyped]
import numpy as np
import pytest

import ramet
from ramet import CloneFlags, _orphans
from tests.childlib import PATH_VARIABLE, Library, Script, load, run, start, start_thread
from tests.isolated import run_python
from tests.waiting import sweep

pytestmark = pytest.mark.usefixtures("lib")

VM, VFORK = CloneFlags.VM, CloneFlags.VFORK
C_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)
ffi = cffi.FFI()
ffi.cdef("long identity(void *); long increment(void *);")


# --- functions ----------------------------------------------------------------------------------


class WithAddress:
    """As numba's cfunc."""

    def __init__(self, address: Any) -> None:
        self.address = address

    def __call__(self) -> None:
        raise AssertionError


FUNCTIONS: dict[str, Callable[[], object]] = {
    "address": lambda: load().identity,
    "ctypes": lambda: ctypes.CDLL(os.environ[PATH_VARIABLE]).identity,
    "ctypes of an address": lambda: C_FUNCTION(load().identity),
    "cffi": lambda: ffi.dlopen(os.environ[PATH_VARIABLE]).identity,
    "cffi of an address": lambda: ffi.cast("long(*)(void *)", load().identity),
    "cffi pointer": lambda: ffi.cast("void *", load().identity),
    "with an address": lambda: WithAddress(load().identity),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("flags", [0, VM, VM | VFORK])
def test_function(kind: str, flags: int) -> None:
    with ramet.clone(FUNCTIONS[kind](), 3, flags) as child:
        assert isinstance(child, ramet.Child)
        assert child.wait().code == 3


def python_function(arg: int) -> int:
    raise AssertionError


class Holder(ctypes.Structure):
    _fields_ = (("f", C_FUNCTION),)


def _in_a_structure() -> Holder:
    return Holder(C_FUNCTION(python_function))


CALLBACKS: dict[str, Callable[[], object]] = {
    "function": lambda: python_function,
    "lambda": lambda: lambda _: 0,
    "builtin": lambda: len,
    "method": lambda: [].append,
    "class": lambda: int,
    "ctypes": lambda: C_FUNCTION(python_function),
    "ctypes, cast": lambda: ctypes.cast(C_FUNCTION(python_function), C_FUNCTION),
    "ctypes, in a structure": lambda: _in_a_structure().f,
    "ctypes, in an array": lambda: (C_FUNCTION * 1)(C_FUNCTION(python_function))[0],
    "ctypes, behind a pointer": lambda: ctypes.pointer(C_FUNCTION(python_function)).contents,
    "ctypes.pythonapi": lambda: ctypes.pythonapi.Py_IncRef,
    "cffi": lambda: ffi.callback("long(void *)", python_function),
}


@pytest.mark.parametrize("kind", CALLBACKS)
@pytest.mark.parametrize("flags", [0, VM, VM | VFORK])
def test_python_functions_are_refused(kind: str, flags: int) -> None:
    reason = "in this process's memory" if flags & VM else "fork hooks"
    with pytest.raises(TypeError, match=f"^fn must be a C function: .* Python.*{reason}"):
        ramet.clone(CALLBACKS[kind](), None, flags)


@pytest.mark.parametrize(
    "fn",
    [
        0,
        -1,
        1 << 64,
        C_FUNCTION(),
        ffi.cast("long(*)(void *)", 0),
        ffi.NULL,
        WithAddress(0),
        WithAddress(-1),
    ],
    ids=repr,
)
def test_no_address(fn: object) -> None:
    with pytest.raises(ValueError, match=r"^fn must be the address of a function, not -?0x"):
        ramet.clone(fn)


@pytest.mark.parametrize(
    "fn", [None, "identity", b"identity", 1.5, True, ctypes.c_long(1), object()], ids=repr
)
def test_no_function(fn: object) -> None:
    with pytest.raises(TypeError, match=rf"^fn must be .*not {type(fn).__name__}$"):
        ramet.clone(fn)


def test_an_address_must_be_an_int() -> None:
    with pytest.raises(TypeError, match=r"^fn must be "):
        ramet.clone(WithAddress("1"))


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arg", "value"),
    [(None, 0), (0, 0), (5, 5), (-5, -5), (-(1 << 63), -(1 << 63)), ((1 << 64) - 1, -1)],
)
def test_integers(lib: Library, arg: int | None, value: int) -> None:
    assert start_thread(lib.identity, arg).join() == value


class Pair(ctypes.Structure):
    _fields_ = (("first", ctypes.c_long), ("second", ctypes.c_long))


LONG = ctypes.sizeof(ctypes.c_long)


def memory_of(arg: object) -> tuple[object, memoryview]:
    """Pass an argument as it is, and look at it as two longs."""
    return arg, memoryview(arg).cast("B").cast("l")  # type: ignore[arg-type]


def through(make: Callable[[Any], object]) -> Callable[[], tuple[object, memoryview]]:
    """Pass what points to a pair of longs."""

    def build() -> tuple[object, memoryview]:
        pair = Pair()
        return make(pair), memory_of(pair)[1]

    return build


def of_cffi(make: Callable[[Any], object]) -> Callable[[], tuple[object, memoryview]]:
    def build() -> tuple[object, memoryview]:
        longs = ffi.new("long[2]")
        return make(longs), memory_of(ffi.buffer(longs))[1]

    return build


# Each gives an argument, and a view of two longs of which the first, or as the name says the
# second, is what the argument stands for.
ARGUMENTS: dict[str, Callable[[], tuple[object, memoryview]]] = {
    "ctypes structure": lambda: memory_of(Pair()),
    "ctypes array": lambda: memory_of((ctypes.c_long * 2)()),
    "ctypes pointer": through(ctypes.pointer),
    "ctypes byref": through(ctypes.byref),
    "ctypes byref, second": through(lambda pair: ctypes.byref(pair, LONG)),
    "ctypes c_void_p": through(lambda pair: ctypes.c_void_p(ctypes.addressof(pair))),
    "ctypes c_char_p": through(lambda pair: ctypes.cast(ctypes.byref(pair), ctypes.c_char_p)),
    "ctypes function": through(lambda pair: C_FUNCTION(ctypes.addressof(pair))),
    "address, second": through(lambda pair: ctypes.addressof(pair) + LONG),
    "cffi array": of_cffi(lambda longs: longs),
    "cffi pointer, second": of_cffi(lambda longs: longs + 1),
    "cffi void pointer": of_cffi(lambda longs: ffi.cast("void *", longs)),
    "cffi from_buffer": through(ffi.from_buffer),
    "numpy array": lambda: memory_of(np.zeros(2, np.int64)),
    "bytearray": lambda: memory_of(bytearray(2 * LONG)),
    "array": lambda: memory_of(array.array("l", [0, 0])),
    "mmap": lambda: memory_of(mmap.mmap(-1, 2 * LONG)),
    "memoryview": lambda: memory_of(memoryview(bytearray(2 * LONG))),
    "memoryview, second": through(lambda pair: memoryview(pair).cast("B")[LONG:]),
    "numpy slice, second": through(lambda pair: np.frombuffer(pair, np.int64)[1:]),
}


@pytest.mark.parametrize("kind", ARGUMENTS)
@pytest.mark.parametrize("flags", [VM, VM | VFORK], ids=["shared", "vfork"])
def test_argument(lib: Library, kind: str, flags: int) -> None:
    arg, longs = ARGUMENTS[kind]()
    run(lib.increment, arg, flags)
    assert longs.tolist() == ([0, 1] if "second" in kind else [1, 0])


@pytest.mark.parametrize(
    "arg",
    [ctypes.c_void_p(), ctypes.c_char_p(), ctypes.POINTER(Pair)(), ffi.NULL, C_FUNCTION()],
    ids=repr,
)
def test_null(lib: Library, arg: object) -> None:
    assert start_thread(lib.identity, arg).join() == 0


REFUSED = [
    b"read-only",
    memoryview(b"read-only"),
    memoryview(bytearray(16))[::2],
    np.zeros(4)[::2],
    np.int64(1),
    "text",
    1.5,
    object(),
    [1],
    python_function,
]


@pytest.mark.parametrize("name", ["arg", "ptid", "tls", "ctid"])
@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
def test_refused(lib: Library, name: str, value: object) -> None:
    flags = CloneFlags.CHILD_SETTID if name == "ctid" else 0
    with pytest.raises(TypeError, match=f"^{name} must be .*, not {type(value).__name__} "):
        start(lib.identity, flags=flags, **{name: value})


def test_cffi_values_are_no_pointers(lib: Library) -> None:
    with pytest.raises(TypeError, match="is not a pointer"):
        start(lib.identity, ffi.new("struct { long x; } *")[0])


@pytest.mark.parametrize("name", ["arg", "ptid", "tls", "ctid"])
@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1])
def test_too_long(lib: Library, name: str, value: int) -> None:
    flags = CloneFlags.CHILD_SETTID if name == "ctid" else 0
    said = re.escape(f"{name} does not fit into 64 bits: {value:#x}")
    with pytest.raises(ValueError, match=f"^{said}$"):
        start(lib.identity, flags=flags, **{name: value})


# --- as long as it is needed --------------------------------------------------------------------


def test_a_buffer_keeps_its_place(call: str) -> None:
    buffer = bytearray(8)
    script = Script()
    gate = script.gate()
    with start(script, flags=VM, ptid=buffer) as child, gate:
        with pytest.raises(BufferError):
            buffer.extend(b"more")
        gate.open()
        child.wait()
        buffer.extend(b"more")


def test_a_refused_start_keeps_nothing(lib: Library) -> None:
    buffer = bytearray(8)
    with pytest.raises(OSError, match="File exists"):
        start(lib.identity, buffer, VM, ptid=buffer, set_tid=[os.getpid()])
    buffer.extend(b"more")
    with pytest.raises(ValueError, match="CLONE_THREAD"):
        start(lib.identity, buffer, CloneFlags.THREAD)
    buffer.extend(b"more")


@pytest.mark.parametrize("end", ["waited for", "dropped", "closed"])
@pytest.mark.parametrize("name", ["ptid", "ctid"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_arguments_are_kept(call: str, name: str, end: str) -> None:
    word = ctypes.c_int()
    kept = weakref.ref(word)
    script = Script()
    gate = script.gate()
    tid_flag = CloneFlags.CHILD_CLEARTID if name == "ctid" else 0
    handles = [start(script, flags=VM | tid_flag, **{name: word})]
    del word
    if end == "closed":
        handles[0].close()
    if end != "waited for":
        handles.clear()
    gc.collect()
    _orphans.sweep()
    assert kept() is not None
    gate.open()
    if handles:
        handles[0].wait()
    sweep()
    assert kept() is None


def test_the_function_is_kept() -> None:
    """A function made at run time may be freed with its object."""
    fn = WithAddress(load().run)
    kept = weakref.ref(fn)
    script = Script()
    gate = script.gate()
    with ramet.clone(fn, script.memory, VM), gate:
        del fn
        assert kept() is not None
    assert kept() is None


def test_nothing_is_kept_without_need(lib: Library) -> None:
    """A child with a copy, or one that has ended already, needs nothing of ours."""
    for flags in (0, VM | VFORK):
        buffer = bytearray(8)
        with start(lib.identity, buffer, flags):
            buffer.extend(b"more")


def test_ctypes_and_cffi_are_not_needed() -> None:
    run_python(
        "import sys, ramet\n"
        "from ramet import _native\n"
        "with ramet.clone(_native.nothing, bytearray(8)) as child: pass\n"
        "assert child.wait().code == 0\n"
        "assert not {'ctypes', '_ctypes', 'cffi', '_cffi_backend'} & set(sys.modules)\n"
    )
    assert "cffi" in sys.modules
