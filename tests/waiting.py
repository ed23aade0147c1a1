"""Children at a gate, threads that wait for them, and waiting for both."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import ramet
from ramet import _orphans
from tests.childlib import WALL, Gate, Script, number, start, start_thread

T = TypeVar("T")

KERNEL = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
_PATIENCE = 20  # seconds
_FUTEX_WAIT_BITSET = 9


@contextmanager
def counted(number: int) -> Iterator[list[int]]:
    """Collect the arrivals of a signal. It may come late, to any thread: wait for it inside."""
    seen: list[int] = []
    before = signal.signal(number, lambda arrived, _: seen.append(arrived))
    try:
        yield seen
    finally:
        signal.signal(number, before)


def until(condition: Callable[[], T]) -> T:
    """Wait for something that has no event to wait for. Returns what is true then."""
    deadline = time.monotonic() + _PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.001)
    return result


# --- children and threads at a gate -------------------------------------------------------------


@contextmanager
def running(flags: int = 0, **options: Any) -> Iterator[tuple[ramet.Child, Gate]]:
    """A child that runs until the gate is opened, at the latest at the end of the block."""
    script = Script()
    gate = script.gate()
    with start(script, flags=flags, **options) as child, gate:
        yield child, gate


@contextmanager
def running_thread(flags: int = 0, **options: Any) -> Iterator[tuple[ramet.Thread, Gate]]:
    """The same with a thread."""
    script = Script()
    gate = script.gate()
    with start_thread(script, flags=flags, **options) as thread, gate:
        yield thread, gate


def wait_for_zombie(pid: int) -> None:
    """Wait for the end of a child without reaping it."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | WALL)


def has_child(pid: int) -> bool:
    """Whether a child is there, be it as a zombie."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG | WALL)
    except ChildProcessError:
        return False
    return True


def children() -> set[int]:
    """List the processes whose parent this one is, zombies too."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(pid) for one in lists for pid in one.read_text().split()}


def sweep() -> None:
    """Wait until nothing is left of all tasks whose handle is gone."""

    def swept() -> bool:
        _orphans.sweep()
        return not _orphans.waiting

    until(swept)


# --- threads of Python that wait ----------------------------------------------------------------


def _numbers(name: str) -> set[int]:
    found = set()
    for variant in (name, f"p{name}"):  # the newer architectures have ppoll only
        with suppress(KeyError):
            found.add(number(variant))
    return found


def blocks(tid: int, name: str) -> bool:
    """Whether a thread or a child is in "waitid", "poll", or "futex" as Stack.join makes it."""
    call, *args = Path(f"/proc/{tid}/syscall").read_text().split()
    if not call.isdigit() or int(call) not in _numbers(name):
        return False
    # The futexes of CPython's own locks are private ones.
    return name != "futex" or int(args[1], 16) == _FUTEX_WAIT_BITSET


class Background(Generic[T]):
    """A call in a thread of its own."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._future: Future[T] = Future()
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[[], T]) -> None:
        try:
            self._future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it is the result
            self._future.set_exception(error)

    def until_blocked(self, *names: str) -> None:
        tid = self._thread.native_id
        assert tid is not None
        until(lambda: any(blocks(tid, name) for name in names))

    def result(self) -> T:
        self._thread.join(_PATIENCE)
        return self._future.result(timeout=0)


@contextmanager
def busy_thread() -> Iterator[None]:
    """Have a thread beside this one that always has something to do."""
    idle = threading.Event()

    def work() -> None:
        while not idle.is_set():
            sum(range(1000))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    thread = threading.Thread(target=work)
    thread.start()
    yield
    idle.set()
    thread.join()
    sys.setswitchinterval(interval)


@contextmanager
def interrupting(name: str, then: Callable[[], None], times: int = 3) -> Iterator[list[int]]:
    """Interrupt the main thread, each time that it is in a system call, by SIGUSR1.

    Yields what a handler has to append to. After the last signal comes a last call.
    """
    main = threading.main_thread()
    assert main.native_id is not None
    tid, seen = main.native_id, list[int]()

    def interrupt() -> None:
        for i in range(times):
            until(lambda: blocks(tid, name))
            signal.pthread_kill(main.ident or 0, signal.SIGUSR1)
            until(lambda i=i: len(seen) > i)  # type: ignore[misc]
        then()

    helper = Background(interrupt)
    yield seen
    helper.result()


@contextmanager
def stopped(pid: int, handler: Callable[..., None]) -> Iterator[None]:
    """Stop a child; a moment later a handler of SIGALRM is called, which has to let it go on."""
    before = signal.signal(signal.SIGALRM, handler)
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


# --- forks --------------------------------------------------------------------------------------


def in_fork(function: Callable[[], None]) -> None:
    """Call a function in a fork of this process, whose other threads hold no lock of Python's."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, of a fork beside them
        pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException:  # noqa: BLE001 - nothing may leave the fork
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0) == (pid, 0)
