"""concurrent.futures with a fresh child for each task: what goes wrong in one costs that alone.

One thread starts the children and watches their pidfds. It is there only while there are tasks, and
is no daemon: so the interpreter waits for it at its end, and it never waits for that.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from selectors import EVENT_READ, BaseSelector, DefaultSelector
from typing import Any, ParamSpec, TypeVar, Unpack

from ramet._child_options import ChildOptions
from ramet._deadlines import check_timeout
from ramet._spawn import File
from ramet._zygote import BoundZygote, ChildDiedError, FunctionChild, Zygote

__all__ = ["CloneExecutor"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Work = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class ExecutorOptions(ChildOptions, total=False):
    """Those of `ramet.Zygote.using`, but for the timeout."""

    fds: Mapping[int, File] | None


class CloneExecutor(Executor):
    """A concurrent.futures.Executor with one fresh child of a `ramet.Zygote` for each task.

    A task whose child dies has a `ramet.ChildDiedError`, and the next one is not concerned. What
    cannot be pickled is the exception of its future. If the zygote dies, the task that was being
    started has a `ramet.ZygoteError`, and is not tried again, since it may have run; the next one
    starts another zygote.

    The futures can be cancelled while they run: ``cancel`` kills the child, and returns True. So it
    is where others cancel them: asyncio for ``run_in_executor``, and ``map`` when its timeout is
    over. Whoever waits by ``concurrent.futures.wait`` hears of it when the child is gone.

    When the executor is dropped, or the interpreter ends, what was submitted is still done. It is
    of no use in a fork of its process.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        preload: Iterable[str] = (),
        main: bool = True,
        timeout: float | None = None,
        **options: Unpack[ExecutorOptions],
    ) -> None:
        """Prepare; the zygote is started by the first task.

        Args:
            max_workers: how many children there are at a time; by default as many as processors
                that this process may run on. Other tasks wait.
            preload: as of `ramet.Zygote`.
            main: the same.
            timeout: seconds that a task may take from the start of its child. Then the child is
                killed, and the future has a TimeoutError.
            options: of the children, as of `ramet.Zygote.using`.

        Raises:
            ValueError: `max_workers` is less than 1; `timeout` is not a number.
            Otherwise as `ramet.Zygote.using`.
        """
        if max_workers is None:
            max_workers = len(os.sched_getaffinity(0))
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        zygote = Zygote(preload, main=main)
        self._manager = _Manager(
            zygote, zygote.using(**options), max_workers, check_timeout(timeout)
        )
        _executors.add(self)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run a function in a fresh child, when there is room for one.

        Args:
            fn: the function, as of `ramet.Zygote.start`.
            args: its arguments.
            kwargs: its keyword arguments.

        Returns:
            The future, which can be cancelled also while it runs.

        Raises:
            RuntimeError: after `shutdown`, or in a fork of the process.
        """
        future = _Future[_T]()
        self._manager.submit(future, (fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and end the zygote when those that were submitted are done.

        In a fork of the process this does nothing.

        Args:
            wait: until all is done.
            cancel_futures: cancel the tasks that were not started yet.

        Raises:
            KeyboardInterrupt: while it waits; the tasks go on.
        """
        self._manager.shutdown(wait, cancel_futures)

    def __del__(self) -> None:
        manager: _Manager | None = getattr(self, "_manager", None)
        if manager is not None:
            manager.drop()


class _Future(Future[_T]):
    """A future that can be cancelled while it runs.

    For the base class it is pending until its child has ended.
    """

    _child: FunctionChild[Any] | None = None
    _deadline: float | None = None
    _expired = False

    def cancel(self) -> bool:
        cancelled = super().cancel()
        child = self._child
        if cancelled and child is not None:
            child.kill()
        return cancelled

    def running(self) -> bool:
        return self._child is not None and not self.done()

    def __repr__(self) -> str:
        text = super().__repr__()
        return text.replace("state=pending", "state=running") if self.running() else text


class _Manager:
    """What an executor and its thread share; the thread does not keep the executor."""

    def __init__(
        self, zygote: Zygote, bound: BoundZygote, workers: int, timeout: float | None
    ) -> None:
        self._zygote = zygote
        self._bound = bound
        self._workers = workers
        self._timeout = timeout
        self._pid = os.getpid()
        self._running: set[_Future[Any]] = set()  # the thread's own
        self._lock = threading.Lock()  # of all below
        self._queue: deque[tuple[_Future[Any], _Work]] = deque()
        self._ended = False
        self._wakeup = -1  # an eventfd while a thread is at work
        self._thread: threading.Thread | None = None  # the last one

    # --- the executor's side ----------------------------------------------------------------

    def submit(self, future: _Future[Any], work: _Work) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                "the executor is of the process that this one was forked from: make one here"
            )
        with self._lock:
            if self._ended:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._wakeup < 0:
                self._start_thread()
            else:
                os.eventfd_write(self._wakeup, 1)
            self._queue.append((future, work))

    def _start_thread(self) -> None:
        selector = DefaultSelector()
        try:
            wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                selector.register(wakeup, EVENT_READ)
                thread = threading.Thread(
                    target=self._work,
                    args=(selector, wakeup, self._thread),
                    name="CloneExecutor",
                    daemon=False,
                )
                thread.start()
            except BaseException:
                os.close(wakeup)
                raise
        except BaseException:
            selector.close()
            raise
        self._wakeup, self._thread = wakeup, thread

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        if self._pid != os.getpid():
            return
        cancelled: list[tuple[_Future[Any], _Work]] = []
        with self._lock:
            self._ended = True
            idle, thread = self._wakeup < 0, self._thread
            if cancel_futures:
                cancelled.extend(self._queue)
                self._queue.clear()
        for future, _ in cancelled:
            future.cancel()
            future.set_running_or_notify_cancel()
        if idle:
            self._zygote.close()
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    def drop(self) -> None:
        """Do what is left to do when the executor is gone.

        This may come in the middle of anything, so it takes no lock. If the thread ends just now,
        the zygote goes with the last reference to it.
        """
        if self._pid == os.getpid():
            self._ended = True
            if self._wakeup < 0:
                self._zygote.close()

    # --- the thread's side ------------------------------------------------------------------

    def _work(self, selector: BaseSelector, wakeup: int, previous: threading.Thread | None) -> None:
        if previous is not None:
            previous.join()  # it is at its end: so whoever joins the last one joins all
        with selector:
            while self._start_some(selector):
                for key, _ in selector.select(self._patience()):
                    if key.data is None:
                        os.eventfd_read(wakeup)
                    else:
                        selector.unregister(key.fileobj)
                        self._running.discard(key.data)
                        _finish(key.data, self._timeout)
                    del key
                self._kill_expired()

    def _start_some(self, selector: BaseSelector) -> bool:
        """Start what there is room for. False if nothing is left to do."""
        while len(self._running) < self._workers:
            with self._lock:
                if not self._queue:
                    if self._running:
                        break
                    os.close(self._wakeup)
                    self._wakeup = -1  # the next task starts another thread
                    ended = self._ended
                else:
                    future, work = self._queue.popleft()
                    ended = None
            if ended is not None:
                if ended:
                    self._zygote.close()
                return False
            self._start(selector, future, work)
            del future, work  # nothing is kept of a task longer than needed
        return True

    def _start(self, selector: BaseSelector, future: _Future[Any], work: _Work) -> None:
        if future.cancelled():
            future.set_running_or_notify_cancel()
            return
        try:
            child = self._child(selector, future, work)
        except BaseException as error:  # noqa: BLE001 - it is the future's
            _settle(future, None, error)
            del future, work  # which the error's traceback would keep
            return
        if self._timeout is not None:
            future._deadline = time.monotonic() + self._timeout
        future._child = child
        if future.cancelled():  # by one who may not have seen the child
            child.kill()
        self._running.add(future)

    def _child(
        self, selector: BaseSelector, future: _Future[Any], work: _Work
    ) -> FunctionChild[Any]:
        fn, args, kwargs = work
        child = self._bound.start(fn, *args, **kwargs)
        try:
            selector.register(child, EVENT_READ, future)
        except BaseException:
            child.kill()
            child.child.wait()
            child.close()
            raise
        return child

    def _patience(self) -> float | None:
        """Say for how many seconds nothing is to be done, None if that is for ever."""
        if self._timeout is None:
            return None
        deadlines = [f._deadline for f in self._running if f._deadline is not None]
        return max(min(deadlines) - time.monotonic(), 0) if deadlines else None

    def _kill_expired(self) -> None:
        if self._timeout is None:
            return
        now = time.monotonic()
        for future in self._running:
            if future._deadline is not None and future._deadline <= now:
                future._deadline, future._expired = None, True
                if future._child is not None:
                    with suppress(PermissionError):  # of a child that has other credentials by now
                        future._child.kill()


def _finish(future: _Future[Any], timeout: float | None) -> None:
    """Hand over what became of a child that has ended."""
    child = future._child
    assert child is not None  # noqa: S101 - it runs
    value: Any = None
    error: BaseException | None = None
    try:
        value = child.result(0)
    except ChildDiedError as died:
        error = died
        if future._expired:
            error = TimeoutError(f"it took longer than {timeout} seconds, and was killed")
    except BaseException as raised:  # noqa: BLE001 - it is the future's
        error = raised
    finally:
        child.close()
        future._child = None
    _settle(future, value, error)
    del future, child, error  # which the error's traceback would keep


def _settle(future: _Future[Any], value: Any, error: BaseException | None) -> None:
    try:
        if not future.set_running_or_notify_cancel():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
    except BaseException:  # noqa: BLE001 - of a callback: the thread has others to serve
        raised = (*sys.exc_info(), threading.current_thread())
        threading.excepthook(threading.ExceptHookArgs(raised))


_executors: weakref.WeakSet[CloneExecutor] = weakref.WeakSet()


@atexit.register
def _shut_down_all() -> None:
    for executor in list(_executors):
        executor.shutdown()
