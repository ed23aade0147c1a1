"""Stacks, and their pool."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import ramet
from ramet import DEFAULT_STACK_SIZE, CloneFlags, _native, _orphans, _stacks
from tests.childlib import Library, Script, run, start, start_thread
from tests.waiting import running, running_thread, sweep

pytestmark = pytest.mark.usefixtures("lib")

VM, VFORK = CloneFlags.VM, CloneFlags.VFORK
PAGE = mmap.PAGESIZE


@pytest.fixture
def pool() -> _native.Pool:
    """The pool, empty."""
    _stacks.pool.clear()
    return _stacks.pool


def start_on(pool: _native.Pool) -> ramet.Child:
    """Start a child on a stack of this pool."""
    flags = int(VM | VFORK | CloneFlags.PIDFD)
    child = _native.start(ramet.Child, pool, None, _native.nothing, 0, flags, signal.SIGCHLD)
    assert isinstance(child, ramet.Child), child
    return child


# --- the memory ---------------------------------------------------------------------------------


def protections() -> Iterator[tuple[int, int, str]]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        extent, mode, *_ = line.split()
        first, last = (int(end, 16) for end in extent.split("-"))
        yield first, last, mode


def mode_at(address: int) -> str | None:
    modes = [mode for first, last, mode in protections() if first <= address < last]
    return modes[0] if modes else None


@pytest.mark.parametrize("size", [PAGE, PAGE + 1, 3 * PAGE - 1, 3 * PAGE, 1 << 30])
def test_memory(size: int) -> None:
    """Whole pages that can be written and not run, with a guard page below."""
    pool = _native.Pool(size, 1)
    assert (pool.size, pool.kept) == (size, 1)
    assert start_on(pool).wait().code == 0
    [address] = pool.idle
    assert address % PAGE == 0
    assert mode_at(address - 1) == mode_at(address - PAGE) == "---p"
    assert mode_at(address) == mode_at(address + size - 1) == "rw-p"
    del pool
    assert mode_at(address) is None


def test_clear() -> None:
    pool = _native.Pool(1 << 40, 1)
    start_on(pool).wait()
    [address] = pool.idle
    pool.clear()
    assert pool.idle == []
    assert mode_at(address) is None
    assert start_on(pool).wait().code == 0


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, -1, -(1 << 63)])
def test_no_size(size: int) -> None:
    with pytest.raises(ValueError, match=f"stack.*page.*got {size}$"):
        _native.Pool(size, 1)


@pytest.mark.parametrize("kept", [-1, 17, 1 << 62])
def test_kept_is_bounded(kept: int) -> None:
    with pytest.raises(ValueError, match=f"0 to 16 stacks can be kept, not {kept}$"):
        _native.Pool(PAGE, kept)


@pytest.mark.parametrize("size", [1 << 61, (1 << 63) - 1])
def test_no_memory(lib: Library, size: int) -> None:
    words = f"Cannot allocate memory: mmap of a stack of {size} bytes failed"
    with pytest.raises(OSError, match=words) as caught:
        start(lib.identity, stack_size=size)
    assert caught.value.errno == errno.ENOMEM


@pytest.mark.parametrize("pool", [None, 3, _native.Pool, "pool"])
def test_not_a_pool(pool: Any) -> None:
    with pytest.raises(TypeError, match="not a Pool"):
        start_on(pool)


@pytest.mark.parametrize("flags", [0, VM, VM | VFORK], ids=["copied", "shared", "vfork"])
def test_overflow(call: str, lib: Library, pool: _native.Pool, flags: int) -> None:
    """The child dies of it, and what lies below the guard page does not change."""
    below = a_neighbour(pool)
    [stack] = pool.idle
    assert run(lib.overflow, 1, flags).signal == signal.SIGSEGV
    assert pool.idle == [stack]
    assert ctypes.string_at(below, PAGE) == PATTERN
    libc.munmap(below, PAGE)


PATTERN = bytes(range(256)) * (PAGE // 256)
MAP_FIXED_NOREPLACE = 0x100000
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_size_t
libc.mmap.argtypes = [ctypes.c_size_t] * 2 + [ctypes.c_int] * 3 + [ctypes.c_size_t]
libc.munmap.argtypes = [ctypes.c_size_t] * 2


def a_neighbour(pool: _native.Pool) -> int:
    """Put one stack into the pool, and fill the page right below its guard page."""
    hogs = []
    for _ in range(100):
        pool.clear()
        start_on(pool).wait()
        [stack] = pool.idle
        address = stack - 2 * PAGE
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        got = libc.mmap(address, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, kind, -1, 0)
        if got == address:
            ctypes.memmove(address, PATTERN, PAGE)
            return address
        pool.clear()
        hogs.append(mmap.mmap(-1, DEFAULT_STACK_SIZE + PAGE))  # so that the next lies elsewhere
    raise AssertionError("no stack has room below it")


@pytest.mark.parametrize("size", [PAGE, 16 * PAGE])
@pytest.mark.parametrize("flags", [0, VM, VM | VFORK], ids=["copied", "shared", "vfork"])
def test_overflow_of_other_sizes(lib: Library, size: int, flags: int) -> None:
    assert run(lib.overflow, 1, flags, stack_size=size).signal == signal.SIGSEGV


@pytest.mark.parametrize("size", [PAGE, 2 * PAGE, 1 << 30])
@pytest.mark.parametrize("flags", [0, VM, VM | VFORK], ids=["copied", "shared", "vfork"])
def test_other_sizes(call: str, lib: Library, size: int, flags: int) -> None:
    assert run(lib.identity, 3, flags, stack_size=size).code == 3
    assert start_thread(lib.identity, 3, stack_size=size).join() == 3


# --- who is on it -------------------------------------------------------------------------------


def test_pool_reuse(call: str, lib: Library, pool: _native.Pool) -> None:
    """By each kind of task, when it has let go of the stack, and not before."""
    run(lib.identity)
    [stack] = pool.idle
    for flags in (0, VM | VFORK, VM, 0):
        run(lib.identity, 3, flags)
        assert pool.idle == [stack]
    start_thread(lib.identity).join()
    assert pool.idle == [stack]
    with running(VM) as (child, gate):
        assert pool.idle == []
        run(lib.identity)
        assert len(pool.idle) == 1
        assert stack not in pool.idle
        gate.open()
        child.wait()
        assert stack in pool.idle
    with running_thread():
        assert len(pool.idle) == 1
    assert len(pool.idle) == 2


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_stacks_of_orphans_are_reused(lib: Library, pool: _native.Pool) -> None:
    scripts = Script(), Script()
    gates = [script.gate() for script in scripts]
    start(scripts[0], flags=VM)
    start_thread(scripts[1])
    gc.collect()
    assert not pool.idle
    _orphans.sweep()
    assert not pool.idle
    for gate in gates:
        gate.open()
    sweep()
    assert len(set(pool.idle)) == 2
    assert run(lib.identity, 3, VM).code == 3


def test_other_sizes_are_not_pooled(lib: Library, pool: _native.Pool) -> None:
    before = guard_pages()
    run(lib.identity, 3, VM, stack_size=2 * DEFAULT_STACK_SIZE)
    start_thread(lib.identity, stack_size=PAGE).join()
    assert not pool.idle
    assert guard_pages() == before


def test_the_pool_is_bounded(pool: _native.Pool) -> None:
    with ExitStack() as stack:
        before = guard_pages()
        for _ in range(2 * pool.kept):
            stack.enter_context(running(VM))
        assert guard_pages() == before + 2 * pool.kept
    assert len(set(pool.idle)) == pool.kept == 16
    assert guard_pages() == before + pool.kept


def test_a_failed_start_gives_back_its_stack(lib: Library, pool: _native.Pool) -> None:
    run(lib.identity)
    before = pool.idle
    for flags in (0, VM, VM | VFORK):
        with pytest.raises(OSError, match="File exists"):
            start(lib.identity, flags=flags, set_tid=[os.getpid()])
        assert pool.idle == before


def guard_pages() -> int:
    return sum(mode == "---p" and last - first == PAGE for first, last, mode in protections())
