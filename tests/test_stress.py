"""Many children, many signals, many threads."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Self

import pytest

import ramet
from ramet import CloneFlags, _native, _orphans, _stacks
from tests.childlib import WALL, Script, load, start, start_thread
from tests.isolated import run_python
from tests.waiting import Background, sweep, until

pytestmark = pytest.mark.usefixtures("lib")

VM, VFORK = CloneFlags.VM, CloneFlags.VFORK
KINDS = (VM | VFORK, VM, CloneFlags(0))


def run_plainly(function: Callable[..., None], *args: object) -> None:
    """As tests.isolated.run_function, without the checks of -X dev, which take most of the time."""
    arguments = ", ".join(map(repr, args))
    path = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
    code = f"import {function.__module__} as m; m.{function.__qualname__}({arguments})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.returncode == 0, said
    assert done.stderr == "", said


class Census:
    """What there is now, and must not grow."""

    def __init__(self) -> None:
        gc.collect()
        self._descriptors = sorted(os.listdir("/proc/self/fd"))
        self._guards = self._guard_pages()

    @staticmethod
    def _guard_pages() -> int:
        """Count the guard pages that have a stack of ours above them, not one of a pthread."""
        lines = Path("/proc/self/maps").read_text().splitlines()
        count = 0
        for guard, stack in itertools.pairwise(lines):
            first, last = (int(end, 16) for end in stack.split()[0].split("-"))
            count += " ---p " in guard and last - first == ramet.DEFAULT_STACK_SIZE
        return count

    def check(self, stacks: int) -> None:
        """Nothing is left but some stacks in the pool."""
        gc.collect()
        sweep()
        with pytest.raises(ChildProcessError):
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | WALL)
        assert sorted(os.listdir("/proc/self/fd")) == self._descriptors
        assert self._guard_pages() <= self._guards + stacks


# --- many ---------------------------------------------------------------------------------------


def test_100_000_children() -> None:
    run_plainly(check_children, 100_000, int(VM | VFORK), 1)


@pytest.mark.parametrize("flags", [VM, 0], ids=["shared", "copied"])
def test_2_000_children(flags: int) -> None:
    run_plainly(check_children, 2_000, int(flags), 1)


def check_children(count: int, flags: int, stacks: int) -> None:
    identity = load().identity
    census = Census()
    for i in range(count):
        child = ramet.clone(identity, i, flags)
        assert isinstance(child, ramet.Child)
        assert child.wait().code == i & 0xFF
    del child
    census.check(stacks)


def test_2_000_threads() -> None:
    run_plainly(check_threads, 2_000)


def check_threads(count: int) -> None:
    identity = load().identity
    census = Census()
    for i in range(count):
        assert start_thread(identity, i).join() == i
    census.check(1)


# --- a storm of signals -------------------------------------------------------------------------


class StormError(Exception):
    pass


class Storm:
    """A signal every 200 microseconds, whose handler raises now and then: when it finds a start
    or a wait on the stack."""

    def __init__(self, raises: float) -> None:
        self.count = 0
        self._raises = raises
        self._random = random.Random(1)  # noqa: S311

    def __enter__(self) -> Self:
        signal.signal(signal.SIGALRM, self._handle)
        signal.setitimer(signal.ITIMER_REAL, 200e-6, 200e-6)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _handle(self, _: int, frame: FrameType | None) -> None:
        self.count += 1
        if self._random.random() < self._raises:
            while frame is not None:
                if frame.f_code in _STRUCK:
                    raise StormError
                frame = frame.f_back


# All of ramet that is called here is called by these.
_STRUCK = {
    function.__code__ for function in (start, start_thread, ramet.Child.wait, ramet.Thread.join)
}


def test_storm() -> None:
    run_plainly(check_storm)


def check_storm() -> None:
    """Handlers that return change nothing."""
    lib = load()
    census = Census()
    pids = set()
    with Storm(0) as storm:
        for i in range(1500):
            for flags in KINDS:
                child = start(lib.identity, i, flags)
                pids.add(child.pid)
                assert child.wait(None if i % 2 else 30).code == i & 0xFF
            assert start_thread(lib.identity, i).join() == i
    assert storm.count > 100
    assert len(pids) > 1000  # pids may come round
    del child
    census.check(1)


@pytest.mark.parametrize("flags", [*KINDS, "thread"], ids=["vfork", "shared", "copied", "thread"])
def test_storm_that_raises(flags: CloneFlags | str) -> None:
    run_plainly(check_storm_that_raises, flags if flags == "thread" else int(flags))


def check_storm_that_raises(flags: int | str) -> None:
    """Wherever a handler raises, no child is lost: it is reaped by someone, some time."""
    warnings.simplefilter("ignore", ResourceWarning)
    # A handler may run in a finalizer; but not in here, since this is no Python function.
    sys.unraisablehook = deque[object](maxlen=0).append
    lib = load()
    census = Census()
    rounds = raised = 0
    with Storm(0.2) as storm:
        while rounds < 4000:
            try:
                rounds += 1
                if isinstance(flags, str):
                    start_thread(lib.identity, rounds).join()
                else:
                    start(lib.identity, rounds, flags).wait()
            except StormError:
                raised += 1
    assert raised > 20
    assert storm.count > raised
    census.check(_stacks.pool.kept)


def test_storm_and_cgroup_directories(cgroup: Path) -> None:
    run_plainly(check_storm_and_cgroup_directories, str(cgroup))


def check_storm_and_cgroup_directories(cgroup: str) -> None:
    """The descriptor of the directory is not lost, wherever a handler raises."""
    warnings.simplefilter("ignore", ResourceWarning)
    sys.unraisablehook = deque[object](maxlen=0).append
    lib, census = load(), Census()
    raised = 0
    with Storm(0.2) as storm:
        for _ in range(3000):
            try:
                start(lib.identity, 0, VM | VFORK, cgroup=cgroup).wait()
            except StormError:
                raised += 1
    assert storm.count >= raised > 20
    census.check(_stacks.pool.kept)


# --- threads ------------------------------------------------------------------------------------


def test_threads_start_at_once() -> None:
    run_plainly(check_threads_start_at_once)


def check_threads_start_at_once() -> None:
    lib = load()
    census = Census()
    sys.setswitchinterval(1e-5)
    barrier = threading.Barrier(8)

    def work(number: int) -> int:
        barrier.wait()
        done = 0
        for i in range(150):
            for flags in KINDS:
                with start(lib.identity, i ^ number, flags) as child:
                    done += child.wait().code == i ^ number
            done += start_thread(lib.identity, i).join() == i
        return done

    workers = [Background(lambda n=n: work(n)) for n in range(8)]  # type: ignore[misc]
    assert [worker.result() for worker in workers] == [600] * 8
    del workers
    census.check(_stacks.pool.kept)


def test_threads_at_one_handle() -> None:
    run_plainly(check_threads_at_one_handle)


def check_threads_at_one_handle() -> None:
    """Whatever several threads do to a task at once, it is settled once."""
    lib, census = load(), Census()
    random_numbers = random.Random(2)  # noqa: S311 - no secret
    rounds, workers = 300, 6
    barrier = threading.Barrier(workers + 1)
    current: list[ramet.Child | ramet.Thread] = []
    child_calls: list[Callable[[ramet.Child], object]] = [
        ramet.Child.poll,
        ramet.Child.wait,
        lambda child: child.wait(1),
        ramet.Child.close,
        ramet.Child.kill,
        lambda _: _orphans.sweep(),
    ]
    thread_calls: list[Callable[[ramet.Thread], object]] = [
        ramet.Thread.join,
        lambda thread: thread.join(1),
        ramet.Thread.is_alive,
    ]
    errors: list[BaseException] = []

    def work(calls: list[int]) -> None:
        for choice in calls:
            barrier.wait()
            task = current[0]
            try:
                if isinstance(task, ramet.Child):
                    child_calls[choice % len(child_calls)](task)
                else:
                    thread_calls[choice % len(thread_calls)](task)
            except (ValueError, ChildProcessError) as error:  # closed by another
                if isinstance(task, ramet.Thread):
                    errors.append(error)
            except BaseException as error:  # noqa: BLE001 - for the test to report
                errors.append(error)
            del task
            barrier.wait()

    choices = [[random_numbers.randrange(60) for _ in range(rounds)] for _ in range(workers)]
    threads = [threading.Thread(target=work, args=(chosen,)) for chosen in choices]
    for thread in threads:
        thread.start()
    for turn in range(rounds):
        if turn % 4 == 3:
            task: ramet.Child | ramet.Thread = start_thread(lib.spin, 1000)
        else:
            task = start(lib.spin, 1000, KINDS[turn % 3])
        current[:] = [task]
        barrier.wait()
        barrier.wait()
        if isinstance(task, ramet.Child):
            task.close()
        else:
            assert task.join() == 0
            assert not task.is_alive()
    current.clear()
    for thread in threads:
        thread.join()
    assert errors == [], errors
    sweep()
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | WALL)
    del task
    census.check(_stacks.pool.kept)


def test_the_gil_is_released(call: str) -> None:
    """The starting thread is suspended by VFORK until another thread opens the gate."""
    script = Script()
    runs = script.call("getpid")
    gate = script.gate()

    def open_gate() -> None:
        until(lambda: runs.result != runs.NOT_MADE)
        gate.open()

    helper = Background(open_gate)
    with start(script, flags=VM | VFORK) as child:
        timed_out = -110 & 0xFF  # ETIMEDOUT of the gate
        assert child.wait().code != timed_out
    helper.result()


# --- subinterpreters ----------------------------------------------------------------------------


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="before 3.12 _native is for the main interpreter alone"
)
def test_subinterpreters() -> None:
    modules = ("concurrent.interpreters", "_interpreters", "_xxsubinterpreters")
    run_python(
        "import importlib, threading\n"
        "def find():\n"
        f"    for name in {modules}:\n"
        "        try:\n"
        "            return importlib.import_module(name)\n"
        "        except ImportError:\n"
        "            pass\n"
        "interpreters = find()\n"
        "code = '''if True:\n"
        "    import ramet\n"
        "    from ramet import _native\n"
        f"    for flags in {[int(kind) for kind in KINDS]}:\n"
        "        for _ in range(50):\n"
        "            with ramet.clone(_native.nothing, None, flags) as child:\n"
        "                if child.wait().code != 0: raise SystemError\n"
        "    print('done')\n"
        "'''\n"
        "def work():\n"
        "    one = interpreters.create()\n"
        "    if hasattr(one, 'exec'):\n"
        "        one.exec(code)\n"
        "        one.close()\n"
        "    else:\n"
        "        failed = interpreters.run_string(one, code)\n"
        "        assert failed is None, failed\n"
        "        interpreters.destroy(one)\n"
        "threads = [threading.Thread(target=work) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n",
        # The debug allocator of 3.12 is not for several interpreters at once: it crashes as well
        # when they just import modules of the standard library.
        dev=sys.version_info >= (3, 13),
    )
    assert _native.nothing
