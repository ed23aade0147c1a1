"""Stacks, and their pool."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import signal
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet import DEFAULT_STACK_SIZE, CloneFlags, _native, _orphans, _stacks
from tests.childlib import Library, Script, run, start, start_thread
from tests.conftest import POOLED_STACKS
from tests.waiting import running, running_thread, sweep

pytestmark = pytest.mark.usefixtures("lib")

VM, VFORK = CloneFlags.VM, CloneFlags.VFORK
PAGE = mmap.PAGESIZE


@pytest.fixture
def pool() -> Iterator[deque[_native.Stack]]:
    """The pool, empty."""
    before = list(_stacks.idle)
    _stacks.idle.clear()
    yield _stacks.idle
    _stacks.idle.extend(before)


# --- the memory ---------------------------------------------------------------------------------


def protections() -> Iterator[tuple[int, int, str]]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        extent, mode, *_ = line.split()
        first, last = (int(end, 16) for end in extent.split("-"))
        yield first, last, mode


def mode_at(address: int) -> str | None:
    modes = [mode for first, last, mode in protections() if first <= address < last]
    return modes[0] if modes else None


@pytest.mark.parametrize(
    ("asked", "size"),
    [(PAGE, PAGE), (PAGE + 1, 2 * PAGE), (2 * PAGE - 1, 2 * PAGE), (1 << 30, 1 << 30)],
)
def test_size(asked: int, size: int) -> None:
    stack = _native.Stack(asked)
    assert stack.size == size
    assert stack.address % PAGE == 0


def test_guard_page() -> None:
    stack = _native.Stack(3 * PAGE)
    first, last = stack.address, stack.address + stack.size
    assert mode_at(first - 1) == mode_at(first - PAGE) == "---p"
    assert mode_at(first) == mode_at(last - 1) == "rw-p"
    assert "x" not in str(mode_at(first))


def test_memory_is_given_back() -> None:
    stack = _native.Stack(1 << 40)
    address = stack.address
    assert mode_at(address) == "rw-p"
    del stack
    assert mode_at(address) is None


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, -1, -(1 << 63), 1 << 62, (1 << 63) - 1])
def test_no_size(size: int) -> None:
    with pytest.raises(ValueError, match=f"stack.*page.*got {size}$"):
        _native.Stack(size)


def test_no_memory() -> None:
    with pytest.raises(OSError, match="Cannot allocate memory") as caught:
        _native.Stack(1 << 61)
    assert caught.value.errno == errno.ENOMEM


@pytest.mark.parametrize("flags", [0, VM, VM | VFORK], ids=["copied", "shared", "vfork"])
def test_overflow(call: str, lib: Library, pool: deque[_native.Stack], flags: int) -> None:
    """The child dies of it, and what lies below the guard page does not change."""
    stack, below = stack_with_a_neighbour()
    pool.append(stack)
    assert run(lib.overflow, 1, flags).signal == signal.SIGSEGV
    assert list(pool) == [stack]
    assert ctypes.string_at(below, PAGE) == PATTERN
    libc.munmap(below, PAGE)


PATTERN = bytes(range(256)) * (PAGE // 256)
MAP_FIXED_NOREPLACE = 0x100000
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_size_t
libc.mmap.argtypes = [ctypes.c_size_t] * 2 + [ctypes.c_int] * 3 + [ctypes.c_size_t]
libc.munmap.argtypes = [ctypes.c_size_t] * 2


def stack_with_a_neighbour() -> tuple[_native.Stack, int]:
    """Make a stack, and fill the page right below its guard page."""
    tried = []
    for _ in range(100):
        stack = _native.Stack(DEFAULT_STACK_SIZE)
        tried.append(stack)  # so that the next one lies elsewhere
        address = stack.address - 2 * PAGE
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        got = libc.mmap(address, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, kind, -1, 0)
        if got == address:
            ctypes.memmove(address, PATTERN, PAGE)
            return stack, address
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


@pytest.mark.parametrize("other", [0, VM, VM | VFORK], ids=["copied", "shared", "vfork"])
def test_no_two_tasks_on_one_stack(lib: Library, pool: deque[_native.Stack], other: int) -> None:
    with running(VM) as (child, gate):
        stack = child._stack
        assert stack is not None
        pool.append(stack)  # where it must never be by now
        with pytest.raises(RuntimeError, match="a task is running on this stack"):
            start(lib.identity, 3, other)
        assert child.poll() is None
        assert child._stack is stack
        assert not stack.released()
        gate.open()


def test_pool_reuse(call: str, lib: Library, pool: deque[_native.Stack]) -> None:
    """By each kind of task, when it has let go of the stack, and not before."""
    run(lib.identity)
    [stack] = pool
    for flags in (0, VM | VFORK, VM, 0):
        run(lib.identity, 3, flags)
        assert list(pool) == [stack]
    start_thread(lib.identity).join()
    assert list(pool) == [stack]
    with running(VM) as (child, gate):
        assert not pool
        run(lib.identity)
        assert stack not in pool
        gate.open()
        child.wait()
        assert stack in pool
    with running_thread():
        assert len(pool) == 1
    assert len(pool) == 2


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_stacks_of_orphans_are_reused(lib: Library, pool: deque[_native.Stack]) -> None:
    scripts = Script(), Script()
    gates = [script.gate() for script in scripts]
    start(scripts[0], flags=VM)
    start_thread(scripts[1])
    gc.collect()
    assert not pool
    _orphans.sweep()
    assert not pool
    for gate in gates:
        gate.open()
    sweep()
    assert len(set(pool)) == 2
    assert run(lib.identity, 3, VM).code == 3


def test_other_sizes_are_not_pooled(lib: Library, pool: deque[_native.Stack]) -> None:
    run(lib.identity, 3, VM, stack_size=2 * DEFAULT_STACK_SIZE)
    start_thread(lib.identity, stack_size=PAGE).join()
    assert not pool


def test_the_pool_is_bounded(pool: deque[_native.Stack]) -> None:
    stacks = [_native.Stack(DEFAULT_STACK_SIZE) for _ in range(4 * POOLED_STACKS)]
    assert len({stack.address for stack in stacks}) == len(stacks)
    for stack in stacks:
        _stacks.give_back(stack)
    assert len(pool) == POOLED_STACKS
    assert set(pool) <= set(stacks)


def test_a_failed_start_frees_its_stack(lib: Library, pool: deque[_native.Stack]) -> None:
    before = guard_pages()
    for _ in range(3):
        with pytest.raises(OSError, match="File exists"):
            start(lib.identity, set_tid=[os.getpid()])
        with pytest.raises(OSError, match="File exists"):
            start(lib.identity, flags=VM, set_tid=[os.getpid()])
    assert len(pool) <= 1
    pool.clear()
    assert guard_pages() == before


def guard_pages() -> int:
    return sum(mode == "---p" and last - first == PAGE for first, last, mode in protections())
