"""CloneExecutor: a fresh child for each task; CPython's own tests of executors are in peers."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from ramet import ChildDiedError, Zygote, ZygoteError
from ramet.futures import CloneExecutor, ExecutorOptions
from tests.functions import (
    add,
    fail,
    ids,
    make_unwilling,
    note,
    segfault,
    state,
    trace_of_a_product,
    unpicklable,
    write,
)
from tests.isolated import run_python
from tests.waiting import busy_thread, children, in_fork, until


@pytest.fixture(scope="module", autouse=True)
def busy() -> Iterator[None]:
    """A thread that always has something to do."""
    with busy_thread():
        yield


@pytest.fixture
def executor() -> Iterator[CloneExecutor]:
    with CloneExecutor(2, main=False) as one:
        yield one


def _threads() -> int:
    return sum(thread.name == "CloneExecutor" for thread in threading.enumerate())


def _zygote_pid(executor: CloneExecutor) -> int:
    pid = executor._manager._zygote.pid
    assert pid is not None
    return pid


def _is_gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def _started(executor: CloneExecutor, path: Path) -> tuple[Future[int], int]:
    """A task that runs until it is killed, and its process."""
    future = executor.submit(note, str(path), 60)
    until(lambda: path.exists() and path.read_text())
    until(future.running)
    return future, int(path.read_text())


# --- tasks --------------------------------------------------------------------------------------


def test_submit(executor: CloneExecutor) -> None:
    future = executor.submit(add, 2, b=3)
    assert future.result() == 5
    assert future.done()
    assert not future.running()
    assert not future.cancel()
    first, second = (executor.submit(ids).result() for _ in range(2))
    assert first[1] == second[1] == os.getpid()
    assert first[0] != second[0]


def test_map(executor: CloneExecutor) -> None:
    assert list(executor.map(add, range(10), range(10), chunksize=3)) == list(range(0, 20, 2))
    with pytest.raises(LookupError):
        list(executor.map(fail, ["x"]))


def test_map_kills_what_takes_too_long(executor: CloneExecutor) -> None:
    executor.submit(add, 1).result()
    with pytest.raises(TimeoutError):
        list(executor.map(time.sleep, [60, 60], timeout=0.05))
    executor.shutdown()


def test_the_number_of_workers(executor: CloneExecutor, tmp_path: Path) -> None:
    _started(executor, tmp_path / "0")
    running, _ = _started(executor, tmp_path / "1")
    queued = executor.submit(add, 1)
    time.sleep(0.05)
    assert not queued.running()
    assert not queued.done()
    assert "pending" in repr(queued)
    assert "running" in repr(running)
    running.cancel()
    assert queued.result() == 2
    os.kill(int((tmp_path / "0").read_text()), signal.SIGKILL)
    with CloneExecutor() as other:
        assert other._manager._workers == len(os.sched_getaffinity(0))
    for number in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            CloneExecutor(number)


@pytest.mark.parametrize(
    ("fn", "args", "error", "said"),
    [
        (fail, ["x"], LookupError, "x"),
        (fail, ["exit"], SystemExit, "7"),
        (fail, ["odd"], RuntimeError, "OddError: odd"),
        (os._exit, [0], ChildDiedError, "exited with 0"),
        (signal.raise_signal, [signal.SIGKILL], ChildDiedError, "SIGKILL"),
        (segfault, [], ChildDiedError, "SIGSEGV"),
        (unpicklable, [], TypeError, "cannot pickle"),
        (add, [threading.Lock()], TypeError, "cannot pickle"),
        (add, [make_unwilling("pickling")], ZeroDivisionError, "pickling"),
        (add, [make_unwilling("unpickling")], ZeroDivisionError, "unpickling"),
        (make_unwilling, ["pickling"], ZeroDivisionError, "pickling"),
        (make_unwilling, ["unpickling"], ZeroDivisionError, "unpickling"),
    ],
)
def test_what_goes_wrong(
    executor: CloneExecutor,
    fn: Callable[..., Any],
    args: list[Any],
    error: type[BaseException],
    said: str,
) -> None:
    """It is that future's, and of no concern to the others."""
    before = executor.submit(time.sleep, 0.1)
    future = executor.submit(fn, *args)
    after = executor.submit(add, 1)
    caught = future.exception()
    assert isinstance(caught, error)
    assert said in str(caught)
    assert before.result() is None
    assert after.result() == 2


def test_the_traceback_of_the_child(executor: CloneExecutor) -> None:
    error = executor.submit(fail, "x").exception()
    assert error is not None
    assert "in fail" in str(error.__cause__)


def test_timeout(tmp_path: Path) -> None:
    with CloneExecutor(2, main=False, timeout=0.5) as executor:
        slow = executor.submit(note, str(tmp_path / "slow"), 60)
        assert [executor.submit(add, i).result() for i in range(3)] == [1, 2, 3]
        with pytest.raises(TimeoutError, match=r"longer than 0\.5 seconds, and was killed"):
            slow.result()
        assert _is_gone(int((tmp_path / "slow").read_text()))
        assert executor.submit(add, 1).result() == 2
    with pytest.raises(ValueError, match="timeout"):
        CloneExecutor(timeout=float("nan"))
    with pytest.raises(TypeError, match="timeout"):
        CloneExecutor(timeout="1")  # type: ignore[arg-type]


def test_options(tmp_path: Path) -> None:
    read, write_end = os.pipe()
    with CloneExecutor(
        1,
        main=False,
        preload=["wave"],
        cwd=tmp_path,
        nice=3,
        rlimits={resource.RLIMIT_NOFILE: 50},
        fds={9: write_end},
    ) as executor:
        found = executor.submit(state).result()
        executor.submit(write, 9, b"nine").result()
    os.close(write_end)
    assert (found["cwd"], found["nice"]) == (str(tmp_path.resolve()), 3)
    assert found["nofile"] == (50, 50)
    assert "wave" in found["modules"]
    assert os.read(read, 10) == b"nine"
    os.close(read)
    with pytest.raises(TypeError, match="no_such_option"):
        CloneExecutor(no_such_option=1)  # type: ignore[call-arg]


def test_the_options_are_those_of_zygotes() -> None:
    """All of them, with their types."""
    theirs = get_type_hints(Zygote.using)
    for name in ("timeout", "return"):
        del theirs[name]
    assert get_type_hints(ExecutorOptions) == theirs


def test_numpy_preloaded() -> None:
    numpy = pytest.importorskip("numpy")
    with CloneExecutor(2, main=False, preload=["numpy"]) as executor:
        assert executor.submit(trace_of_a_product, 100).result() == 100 * 100
        doubled = executor.submit(numpy.multiply, numpy.arange(100_000), 2).result()
        assert (doubled == numpy.arange(0, 200_000, 2)).all()


def test_nothing_is_kept_of_a_task(executor: CloneExecutor) -> None:
    class Marked(set[int]):
        """Can be referred to weakly."""

    sent = executor.submit(sorted, frozenset([2, 1]))
    assert sent.result() == [1, 2]
    future = executor.submit(set, [1])
    result = weakref.ref(future.result())
    del future
    gc.collect()
    assert result() is None
    marked = Marked()
    gone = weakref.ref(marked)
    failing = executor.submit(len, marked)  # a local class cannot be pickled, unless by cloudpickle
    del marked
    failing.exception()
    del failing
    gc.collect()
    assert gone() is None


# --- cancelling ---------------------------------------------------------------------------------


def test_cancel_a_running_task(executor: CloneExecutor, tmp_path: Path) -> None:
    future, pid = _started(executor, tmp_path / "pid")
    called: list[Future[int]] = []
    future.add_done_callback(called.append)
    assert future.cancel()
    assert future.cancel()
    assert future.cancelled()
    assert not future.running()
    assert called == [future]
    with pytest.raises(CancelledError):
        future.result()
    assert futures.wait([future], timeout=20).done == {future}
    assert _is_gone(pid)
    assert list(futures.as_completed([future])) == [future]
    assert executor.submit(add, 1).result() == 2


def test_cancel_a_queued_task(tmp_path: Path) -> None:
    with CloneExecutor(1, main=False) as executor:
        running, _ = _started(executor, tmp_path / "running")
        queued = executor.submit(note, str(tmp_path / "queued"), 60)
        last = executor.submit(add, 1)
        assert queued.cancel()
        assert running.cancel()
        assert last.result() == 2
        assert futures.wait([queued, running], timeout=20).not_done == set()
    assert not (tmp_path / "queued").exists()


def test_cancel_at_any_time(executor: CloneExecutor) -> None:
    """Wherever the thread is with it: it is done, or cancelled, and nothing hangs."""
    for i in range(60):
        future = executor.submit(add, i)
        time.sleep(i / 10_000)
        if future.cancel():
            assert future.cancelled()
        else:
            assert future.result() == i + 1
    assert executor.submit(add, 1).result() == 2


def test_asyncio(executor: CloneExecutor, tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, add, 1, 2) == 3
        path = tmp_path / "pid"
        running = loop.run_in_executor(executor, note, str(path), 60)
        while not path.exists() or not path.read_text():
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        while not _is_gone(int(path.read_text())):
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.run_in_executor(executor, time.sleep, 60), 0.05)

    asyncio.run(main())
    executor.shutdown()  # would wait for a minute


def test_callbacks_that_raise(executor: CloneExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_type))

    def leave(_: object) -> None:
        raise KeyboardInterrupt

    future = executor.submit(time.sleep, 0.05)
    future.add_done_callback(leave)
    assert future.result() is None
    assert executor.submit(add, 1).result() == 2
    assert seen == [KeyboardInterrupt]


# --- the zygote ---------------------------------------------------------------------------------


def test_the_zygote_is_killed_when_idle(executor: CloneExecutor) -> None:
    executor.submit(add, 1).result()
    pid = _zygote_pid(executor)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert executor.submit(add, 1).result() == 2
    assert _zygote_pid(executor) != pid


def test_the_zygote_is_killed_in_flight(executor: CloneExecutor, tmp_path: Path) -> None:
    """What was being started fails; what runs goes on, and so does what comes after.

    The first may find a child that was made ahead of it; then the second fails.
    """
    running, _ = _started(executor, tmp_path / "running")
    pid = _zygote_pid(executor)
    os.kill(pid, signal.SIGSTOP)
    asked, after = executor.submit(add, 1), executor.submit(add, 2)
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    (failure,) = filter(None, (asked.exception(), after.exception()))
    assert isinstance(failure, ZygoteError)
    assert "killed by SIGKILL" in str(failure)
    assert executor.submit(add, 3).result() == 4
    assert running.running()
    running.cancel()


def test_a_preload_that_fails() -> None:
    with CloneExecutor(1, main=False, preload=["no_such_module"]) as executor:
        for _ in range(2):
            with pytest.raises(ZygoteError, match="no_such_module"):
                executor.submit(add, 1).result()


# --- its life -----------------------------------------------------------------------------------


def test_shutdown(tmp_path: Path) -> None:
    executor = CloneExecutor(1, main=False)
    executor.shutdown()  # unused
    executor = CloneExecutor(1, main=False)
    tasks = [executor.submit(add, i) for i in range(5)]
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(add, 1)
    executor.shutdown()
    executor.shutdown()
    assert [task.result(0) for task in tasks] == [1, 2, 3, 4, 5]
    assert executor._manager._zygote.pid is None
    assert not _threads()


def test_shutdown_that_cancels(tmp_path: Path) -> None:
    executor = CloneExecutor(1, main=False)
    running, pid = _started(executor, tmp_path / "pid")
    queued = [executor.submit(add, i) for i in range(3)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    assert futures.wait(queued, timeout=0).not_done == set()
    assert running.running()
    os.kill(pid, signal.SIGTERM)
    assert isinstance(running.exception(), ChildDiedError)
    executor.shutdown()


def test_shutdown_by_a_callback() -> None:
    executor = CloneExecutor(1, main=False)
    future = executor.submit(time.sleep, 0.05)
    future.add_done_callback(lambda _: executor.shutdown())
    future.result()
    until(lambda: not _threads())
    assert executor._manager._zygote.pid is None


def test_dropped_when_idle() -> None:
    executor = CloneExecutor(1, main=False)
    error = executor.submit(fail, "x").exception()
    pid = _zygote_pid(executor)
    until(lambda: not _threads())
    del executor
    until(lambda: _is_gone(pid))
    assert error is not None


def test_dropped_with_tasks() -> None:
    executor = CloneExecutor(1, main=False)
    tasks = [executor.submit(add, i) for i in range(5)]
    until(tasks[0].done)
    pid = _zygote_pid(executor)
    del executor
    gc.collect()
    assert [task.result() for task in tasks] == [1, 2, 3, 4, 5]
    until(lambda: _is_gone(pid))
    until(lambda: not _threads())


def test_the_thread_is_there_only_with_tasks(executor: CloneExecutor) -> None:
    assert not _threads()
    for i in range(5):
        assert executor.submit(add, i).result() == i + 1
        until(lambda: not _threads())
        assert executor._manager._wakeup < 0


def test_in_a_fork(executor: CloneExecutor, tmp_path: Path) -> None:
    running, _ = _started(executor, tmp_path / "pid")
    inherited = executor

    def use() -> None:
        with pytest.raises(RuntimeError, match="forked from: make one here"):
            inherited.submit(add, 1)
        inherited.shutdown()
        with CloneExecutor(1, main=False) as own:
            assert own.submit(ids).result()[1] == os.getpid()

    in_fork(use)
    assert running.running()
    assert executor.submit(add, 1).result() == 2
    running.cancel()


@pytest.mark.parametrize("end", ["", "executor.shutdown(wait=False)", "del executor"])
def test_the_end_of_the_interpreter(end: str) -> None:
    """What was submitted is done, and nothing is left."""
    done = run_python(
        "import os, time\n"
        "from ramet.futures import CloneExecutor\n"
        "executor = CloneExecutor(2, main=False)\n"
        "executor.submit(print, 'first', flush=True).result()\n"
        "print(executor._manager._zygote.pid, flush=True)\n"
        "executor.submit(time.sleep, 0.2)\n"
        "for _ in range(3): executor.submit(print, 'last', flush=True)\n" + end
    )
    first, pid, *last = done.stdout.split()
    assert (first, last) == ("first", ["last"] * 3)
    until(lambda: _is_gone(int(pid)))


def test_submitted_at_exit() -> None:
    done = run_python(
        "import atexit\n"
        "def early(): executor.submit(print, 'early', flush=True)\n"
        "def late():\n"
        "    try: executor.submit(print, 'late')\n"
        "    except RuntimeError as error: print(error)\n"
        "atexit.register(late)\n"
        "from ramet.futures import CloneExecutor\n"
        "executor = CloneExecutor(2, main=False)\n"
        "atexit.register(early)\n",
        check=False,
    )
    refused = "can't create new thread at interpreter shutdown"  # by Pythons from 3.14 on
    assert done.stdout.startswith("early\n") or refused in done.stderr, done.stderr
    assert done.stdout.endswith("cannot schedule new futures after shutdown\n")


def test_the_executor_is_killed_with_its_process() -> None:
    """Children go on, but the zygote does not."""
    done = run_python(
        "import os, signal\n"
        "from ramet.futures import CloneExecutor\n"
        "executor = CloneExecutor(2, main=False)\n"
        "executor.submit(pow, 2, 2).result()\n"
        "print(executor._manager._zygote.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        check=False,
    )
    until(lambda: _is_gone(int(done.stdout)))


def test_submitted_by_many_threads(executor: CloneExecutor) -> None:
    def work(number: int) -> bool:
        return all(executor.submit(add, number, i).result() == number + i for i in range(10))

    with futures.ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


def test_nothing_is_left(executor: CloneExecutor) -> None:
    for _ in range(2):  # then another child waits
        executor.submit(add, 1).result()
    until(lambda: not _threads())
    before = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    tasks: list[Future[int]] = [
        executor.submit(add, i) if i % 10 else executor.submit(os._exit, 1) for i in range(500)
    ]
    cancelled = {i for i in range(300, 500, 7) if tasks[i].cancel()}
    assert threading.active_count() <= threads + 1
    for i, task in enumerate(tasks):
        if i in cancelled:
            assert task.cancelled()
        elif i % 10 == 0:
            assert isinstance(task.exception(), ChildDiedError)
        else:
            assert task.result() == i + 1
    assert cancelled
    until(lambda: not _threads())
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == before
    zygote = _zygote_pid(executor)
    waiting = until(lambda: children() - {zygote})  # for the next task
    assert len(waiting) == 1
    executor.shutdown()
    assert not children() & {zygote, *waiting}
