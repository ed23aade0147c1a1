"""Thread."""

from __future__ import annotations

import ctypes
import errno
import gc
import math
import mmap
import select
import signal
import time
import weakref
from collections.abc import Iterator
from decimal import Decimal
from types import FrameType
from typing import Any

import pytest

import ramet
from ramet import CloneFlags, _orphans
from tests.childlib import (
    FUTEX_WAIT_BITSET,
    Library,
    Script,
    Timespec,
    load,
    run,
    start_thread,
    syscall,
)
from tests.isolated import run_function
from tests.waiting import KERNEL, Background, in_fork, interrupting, running_thread, sweep, until

pytestmark = pytest.mark.usefixtures("lib")

VFORK, PIDFD = CloneFlags.VFORK, CloneFlags.PIDFD
SETTID, CLEARTID = CloneFlags.CHILD_SETTID, CloneFlags.CHILD_CLEARTID
both = pytest.mark.parametrize("flags", [0, VFORK], ids=["", "vfork"])


@both
@pytest.mark.parametrize("value", [0, 1, -1, 255, 256, 1 << 40, (1 << 63) - 1, -(1 << 63)])
def test_join(call: str, lib: Library, value: int, flags: int) -> None:
    thread = start_thread(lib.identity, value, flags)
    assert thread.join() == value
    assert thread.join(0) == value
    assert not thread.is_alive()


@both
def test_ended_by_itself(call: str, flags: int) -> None:
    script = Script()
    script.call("exit", 3)
    never = script.call("getpid")
    assert start_thread(script, flags=flags).join() is None
    assert never.result == never.NOT_MADE


def test_tid_and_is_alive(call: str) -> None:
    script = Script()
    gettid = script.call("gettid")
    gate = script.gate()
    with start_thread(script) as thread, gate:
        assert thread.is_alive()
        assert repr(thread) == f"<ramet.Thread tid={thread.tid} alive>"
    assert not thread.is_alive()
    assert gettid.result == thread.tid
    assert repr(thread) == f"<ramet.Thread tid={thread.tid} ended>"


@pytest.mark.parametrize("timeout", [0, -1, 0.001, -math.inf])
def test_timeout(timeout: float) -> None:
    with running_thread() as (thread, gate):
        with pytest.raises(TimeoutError, match=f"thread {thread.tid} still runs") as caught:
            thread.join(timeout)
        assert caught.value.errno == errno.ETIMEDOUT
        gate.open()
        assert thread.join() is not None


@pytest.mark.parametrize("timeout", [None, 30, 1e300, math.inf, 10**400, Decimal(30)])
def test_long_timeouts(lib: Library, timeout: Any) -> None:
    assert start_thread(lib.identity, 3).join(timeout) == 3


def test_bad_timeouts(lib: Library) -> None:
    with start_thread(lib.identity) as thread:
        with pytest.raises(ValueError, match="timeout is not a number"):
            thread.join(math.nan)
        with pytest.raises(TypeError):
            thread.join("1")  # type: ignore[arg-type]


def test_many_threads_join() -> None:
    with running_thread() as (thread, gate):
        waiters = [Background(thread.join) for _ in range(6)]
        waiters += [Background(lambda: thread.join(30)) for _ in range(2)]
        for waiter in waiters:
            waiter.until_blocked("futex")
        gate.open()
        assert {waiter.result() for waiter in waiters} == {thread.join()}


def test_context_manager_with_an_exception() -> None:
    with pytest.raises(KeyError), running_thread() as (thread, _):
        raise KeyError
    assert not thread.is_alive()


# --- where the kernel stores --------------------------------------------------------------------


@both
@pytest.mark.parametrize("tid_flags", [SETTID, CLEARTID, SETTID | CLEARTID])
def test_own_ctid(call: str, lib: Library, tid_flags: int, flags: int) -> None:
    """The word is cleared at the end in any case: that is how a thread is joined."""
    word = ctypes.c_int(7)
    thread = start_thread(lib.identity, 5, tid_flags | flags, ctid=word)
    assert thread.join() == 5
    assert word.value == 0


def test_own_ctid_while_it_runs(call: str) -> None:
    word = ctypes.c_int(0)
    with running_thread(CLEARTID, ctid=word) as (thread, _):
        assert word.value != 0
        assert thread.is_alive()
    with running_thread(SETTID, ctid=word) as (thread, _):
        until(lambda: word.value == thread.tid)
    assert word.value == 0


def test_own_ctid_that_lies(call: str) -> None:
    """Whatever the caller writes to it: a thread that runs is not taken for one that has ended."""
    word = ctypes.c_int()
    with running_thread(CLEARTID, ctid=word) as (thread, gate):
        word.value = 0
        assert thread.is_alive()
        with pytest.raises(TimeoutError):
            thread.join(0.02)
        waiter = Background(thread.join)
        gate.open()
        waiter.result()
        assert not thread.is_alive()


def test_two_threads_with_one_ctid(call: str, lib: Library) -> None:
    word = ctypes.c_int()
    with running_thread(CLEARTID, ctid=word) as (first, _):
        assert start_thread(lib.identity, 5, CLEARTID, ctid=word).join() == 5
        assert word.value == 0
        assert first.is_alive()
        assert start_thread(lib.identity, 6).join() == 6
        assert first.is_alive()
    assert not first.is_alive()


def test_own_ctid_with_a_waiter_of_the_callers(call: str) -> None:
    """The kernel wakes one of those who wait on the word; that need not be the one who joins."""
    word = ctypes.c_int()
    deadline = Timespec(int(time.monotonic()) + 20, 0)
    with running_thread(CLEARTID, ctid=word) as (thread, gate):
        address, value = ctypes.addressof(word), word.value
        caller = Background(
            lambda: syscall(
                "futex", address, FUTEX_WAIT_BITSET, value, ctypes.addressof(deadline), 0, -1
            )
        )
        caller.until_blocked("futex")
        joiner = Background(thread.join)
        joiner.until_blocked("futex")
        gate.open()
        joiner.result()
        caller.result()
        assert word.value == 0


def test_fork(call: str) -> None:
    """Nobody would ever clear the copy of the word."""
    with running_thread() as (thread, _):

        def join() -> None:
            assert not thread.is_alive()
            with pytest.raises(ChildProcessError), thread:
                thread.join()

        in_fork(join)
        assert thread.is_alive()


@pytest.mark.parametrize("how", ["joined", "dropped"])
def test_own_ctid_is_not_looked_at_after_the_end(how: str) -> None:
    run_function(check_own_ctid_is_not_looked_at_after_the_end, how)


def check_own_ctid_is_not_looked_at_after_the_end(how: str) -> None:
    """Its memory is the caller's again, who may use it for something else, or unmap it."""
    lib = load()
    for again in ("used", "unmapped"):
        memory = mmap.mmap(-1, mmap.PAGESIZE)
        word = ctypes.c_int.from_buffer(memory)
        threads = [start_thread(lib.identity, 5, CLEARTID, ctid=ctypes.addressof(word))]
        assert threads[0].join() == 5
        if how == "dropped":
            threads.clear()
            assert not _orphans.waiting
        word.value = 1
        if again == "unmapped":
            del word
            gc.collect()
            memory.close()
        assert not any(thread.is_alive() for thread in threads)
        threads.clear()
        assert not _orphans.waiting
        assert start_thread(lib.identity, 6).join() == 6
        assert run(lib.identity, 7, CloneFlags.VM).code == 7


@pytest.mark.skipif(KERNEL < (6, 9), reason="a pidfd of a thread needs Linux 6.9")
def test_pidfd(lib: Library) -> None:
    with running_thread(PIDFD) as (thread, gate):
        poller = select.poll()
        poller.register(thread.pidfd, select.POLLIN)
        assert poller.poll(0) == []
        gate.open()
        [(_, events)] = poller.poll()
        assert events & select.POLLIN
        assert thread.join() is not None


def test_no_pidfd(lib: Library) -> None:
    with start_thread(lib.identity) as thread, pytest.raises(ValueError, match="CLONE_PIDFD"):
        _ = thread.pidfd


# --- signals for the one who joins --------------------------------------------------------------


@pytest.fixture
def _usr1() -> Iterator[None]:
    yield
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


@pytest.mark.parametrize("timeout", [None, 30])
@pytest.mark.usefixtures("_usr1")
def test_joining_goes_on_after_a_handler(timeout: float | None) -> None:
    with running_thread() as (thread, gate), interrupting("futex", gate.open) as seen:
        signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
        assert thread.join(timeout) is not None
        assert seen == [signal.SIGUSR1] * 3


class HandlerError(Exception):
    pass


@pytest.mark.parametrize("timeout", [None, 30])
@pytest.mark.usefixtures("_usr1")
def test_a_handler_that_raises_ends_the_join(timeout: float | None) -> None:
    with running_thread() as (thread, gate):
        with interrupting("futex", lambda: None, 1) as seen:

            def handler(number: int, frame: FrameType | None) -> None:
                seen.append(number)
                raise HandlerError

            signal.signal(signal.SIGUSR1, handler)
            with pytest.raises(HandlerError):
                thread.join(timeout)
        assert thread.is_alive()
        gate.open()
        assert thread.join() is not None


# --- the end of a handle ------------------------------------------------------------------------


def test_dropped_while_it_runs(call: str) -> None:
    """What the thread was given is kept until it has ended, and no longer."""
    word = ctypes.c_long()
    kept = weakref.ref(word)
    script = Script()
    gate = script.gate()
    thread = start_thread(script, ptid=word)
    del word, thread
    gc.collect()
    _orphans.sweep()
    assert kept() is not None
    assert len(_orphans.waiting) == 1
    gate.open()
    sweep()
    assert kept() is None


def test_kept_while_the_handle_is(lib: Library) -> None:
    word = ctypes.c_long()
    kept = weakref.ref(word)
    thread = start_thread(lib.increment, word)
    del word
    thread.join()
    del thread
    assert kept() is None
    assert not _orphans.waiting


def test_a_thread_is_no_child(lib: Library) -> None:
    assert isinstance(start_thread(lib.identity), ramet.Thread)
    assert not issubclass(ramet.Thread, ramet.Child)
