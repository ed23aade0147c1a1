"""Run CPython's own tests of a module with ramet in its place.

    python tests/peers/run.py subprocess|asyncio|futures [-v]

Exits with 0 if all pass but those of NOT_OURS.
"""

import asyncio
import importlib
import multiprocessing
import pickle
import subprocess
import sys
import unittest
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ramet.aio
import ramet.futures

TESTS = {
    "subprocess": "test.test_subprocess",
    "asyncio": "test.test_asyncio.test_subprocess",
    "futures": "test.test_concurrent_futures.util",
}

# These replace, or look at, what the standard modules are made of inside.
NOT_OURS = {
    "subprocess": {
        "test__use_vfork": "replaces subprocess._fork_exec",
        "test_stopped": "replaces os.waitpid, which ramet does not call",
        "test_exception_errpipe_normal": "replaces os.pipe for the pipe that reports errors",
        "test_exception_errpipe_bad_data": "replaces os.pipe for the pipe that reports errors",
        "test_wait_pidfd_open_error": "replaces os.pidfd_open, which ramet does not call",
        "test_pidfd_open_race": "replaces os.pidfd_open, which ramet does not call",
        "test_pidfd_open_notification_without_immediate_reap": "replaces os.waitpid, and "
        "os.pidfd_open",
    },
    "asyncio": {
        "test_pid_not_reaped_before_exit_published": "looks at the threads of asyncio's watcher",
        "test_popen_error": "replaces subprocess.Popen",
        "test_popen_error_with_stdin_pipe": "replaces subprocess.Popen",
        "test_create_subprocess_fails_with_inactive_watcher": "ramet needs no child watcher",
    },
    "futures": {
        "test_cancel_futures": "relies on a task's being started before 49 others are submitted",
        "test_shutdown_deadlock_pickle": "looks at the manager thread of ProcessPoolExecutor",
    },
}

# The tests that are for executors of any kind, but that on deadlocks for pools of processes.
EXECUTORS = {
    "executor": "ExecutorTest",
    "test_shutdown": "ExecutorShutdownTest",
    "test_wait": "WaitTests",
    "test_as_completed": "AsCompletedTests",
    "test_deadlock": "ExecutorDeadlockTest",
}


def replace_subprocess() -> None:
    subprocess.Popen = ramet.Popen  # type: ignore[assignment,misc] # what run and the tests use


def replace_asyncio() -> None:
    for module in (asyncio, asyncio.subprocess):
        module.create_subprocess_exec = ramet.aio.create_subprocess_exec  # type: ignore[attr-defined]
        module.create_subprocess_shell = ramet.aio.create_subprocess_shell  # type: ignore[attr-defined]
    if sys.version_info < (3, 14):
        # As the test with the inactive watcher does, on which the one after it relies.
        asyncio.set_event_loop(None)


class CloneExecutor(ramet.futures.CloneExecutor):
    """Some tests name a context of multiprocessing."""

    def __init__(self, max_workers: int | None = None, **_: object) -> None:
        super().__init__(max_workers)


def replace_executors() -> None:
    """Give this module the tests of executors, for ours, as each of theirs makes them."""
    util: Any = importlib.import_module(TESTS["futures"])
    own = {"executor_type": CloneExecutor, "get_context": multiprocessing.get_context}
    mixin = type("CloneMixin", (util.ExecutorMixin,), own)
    for name, tests in EXECUTORS.items():
        module: Any = importlib.import_module(f"{util.__package__}.{name}")
        util.create_executor_tests(globals(), getattr(module, tests), executor_mixins=(mixin,))
        if name == "test_deadlock":
            # What breaks their pool is in ours the error of the task.
            module.BrokenProcessPool = (ramet.ChildDiedError, SystemExit, pickle.UnpicklingError)
        if name == "test_shutdown":
            module.assert_python_ok = partial(run_with_ours, module.assert_python_ok)


def run_with_ours(run: Callable[..., object], *args: str) -> object:
    """Run code that imports an executor by its name."""
    theirs = "from concurrent.futures import CloneExecutor"
    return run(*(arg.replace(theirs, "from ramet.futures import CloneExecutor") for arg in args))


def ours(suite: unittest.TestSuite, left_out: dict[str, str]) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from ours(test, left_out)
        elif test.id().rpartition(".")[2] not in left_out:
            yield test


if __name__ == "__main__":
    peer = sys.argv[1]
    {
        "subprocess": replace_subprocess,
        "asyncio": replace_asyncio,
        "futures": replace_executors,
    }[peer]()
    module = importlib.import_module("__main__" if peer == "futures" else TESTS[peer])
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    tests = unittest.TestSuite(ours(suite, NOT_OURS[peer]))
    result = unittest.TextTestRunner(verbosity=1 + ("-v" in sys.argv)).run(tests)
    sys.exit(not result.wasSuccessful() or not result.testsRun)
