"""Run CPython's own tests of a module with ramet in its place.

    python tests/peers/run.py subprocess|asyncio|multiprocessing|pools|executors [--short] [-v]

Exits with 0 if all pass but those of NOT_OURS. Some take minutes; --short runs the part of them
that does not.
"""

import asyncio
import importlib
import multiprocessing
import pickle
import pkgutil
import re
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
    "multiprocessing": "test._test_multiprocessing",
    "pools": "test.test_concurrent_futures",
    "executors": "test.test_concurrent_futures.util",
}

# Where a context is used for all that it does, and little waits for time to pass.
SHORT = {
    "multiprocessing": [
        "WithProcessesTestProcess",
        "WithProcessesTestSubclassingProcess",
        "WithProcessesTestPool",
        "WithProcessesTestQueue",
        "WithProcessesTestValue",
        "WithProcessesTestHeap",
        "WithManagerTestMyManager",
        "TestInitializers",
        "TestCloseFds",
        "TestForkAwareThreadLock",
        "TestResourceTracker",
    ],
    "pools": ["ProcessPoolSpawnProcessPoolExecutorTest", "ProcessPoolSpawnAsCompletedTest"],
}

# Most of these replace, or look at, what the standard modules are made of inside.
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
    "multiprocessing": {
        # Of this name no other interpreter knows; tests/test_mp.py has the same for ramet.mp.
        "TestFlags.test_flags": "starts an interpreter that is to have a context of the name",
        "TestNoForkBomb.test_noforkbomb": "starts an interpreter that is to have a context of "
        "the name",
        "TestStartMethod.test_context": "starts processes by the standard methods, which are told "
        "the name of the default here",
        "WithThreadsTestPool.test_terminate": "threads, not processes: CPython 3.11's now "
        "and then waits for one that sleeps",
    },
    "pools": {},
    "executors": {
        "test_cancel_futures": "relies on a task's being started before 49 others are submitted",
        "test_shutdown_deadlock_pickle": "looks at the manager thread of ProcessPoolExecutor",
    },
}


def tests_of_subprocess() -> unittest.TestSuite:
    subprocess.Popen = ramet.Popen  # type: ignore[assignment,misc] # what run and the tests use
    return unittest.defaultTestLoader.loadTestsFromName(TESTS["subprocess"])


def tests_of_asyncio() -> unittest.TestSuite:
    for module in (asyncio, asyncio.subprocess):
        module.create_subprocess_exec = ramet.aio.create_subprocess_exec  # type: ignore[attr-defined]
        module.create_subprocess_shell = ramet.aio.create_subprocess_shell  # type: ignore[attr-defined]
    if sys.version_info < (3, 14):
        # As the test with the inactive watcher does, on which the one after it relies.
        asyncio.set_event_loop(None)
    return unittest.defaultTestLoader.loadTestsFromName(TESTS["asyncio"])


# --- ramet.mp -----------------------------------------------------------------------------------

REGISTRATION = """
import multiprocessing.context, ramet.mp
multiprocessing.context._concrete_contexts["ramet"] = ramet.mp.get_context()
"""


def register_context() -> None:
    """Let the tests have it by its name, also in the interpreters that they start for a code."""
    exec(REGISTRATION, {})  # noqa: S102 - our own
    script_helper: Any = importlib.import_module("test.support.script_helper")
    run = script_helper.run_python_until_end

    def run_registered(*args: str, **options: object) -> object:
        if "-c" in args:
            code = args.index("-c") + 1
            args = (*args[:code], REGISTRATION + args[code], *args[code + 1 :])
        return run(*args, **options)

    script_helper.run_python_until_end = run_registered


def tests_of_multiprocessing() -> unittest.TestSuite:
    register_context()
    # Not by the name of a package: it is in the path of all processes.
    return unittest.defaultTestLoader.loadTestsFromName("multiprocessing_tests")


def tests_of_pools() -> unittest.TestSuite:
    """Load the tests of process pools that spawn, which do not do so here."""
    register_context()
    package = importlib.import_module(TESTS["pools"])
    if hasattr(package, "__path__"):  # from 3.12 on
        names = [
            f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)
        ]
        mixin = importlib.import_module(f"{package.__name__}.util").ProcessPoolSpawnMixin
    else:
        names, mixin = [package.__name__], package.ProcessPoolSpawnMixin
    mixin.ctx = "ramet"
    suite = unittest.defaultTestLoader.loadTestsFromNames(names)
    return unittest.TestSuite(test for test in ours(suite, {}) if isinstance(test, mixin))


# --- ramet.futures ------------------------------------------------------------------------------

# The tests that are for executors of any kind, but that on deadlocks for pools of processes.
EXECUTORS = {
    "executor": "ExecutorTest",
    "test_shutdown": "ExecutorShutdownTest",
    "test_wait": "WaitTests",
    "test_as_completed": "AsCompletedTests",
    "test_deadlock": "ExecutorDeadlockTest",
}


class CloneExecutor(ramet.futures.CloneExecutor):
    """Some tests name a context of multiprocessing."""

    def __init__(self, max_workers: int | None = None, **_: object) -> None:
        super().__init__(max_workers)


def tests_of_executors() -> unittest.TestSuite:
    """Give this module the tests of executors, for ours, as each of theirs makes them."""
    util: Any = importlib.import_module(TESTS["executors"])
    own: dict[str, Any] = {
        "executor_type": CloneExecutor,
        "get_context": lambda _: multiprocessing.get_context("spawn"),
    }
    if sys.version_info >= (3, 14):  # events come from a manager, as for pools of processes
        own |= {"ctx": "spawn", "create_event": lambda self: self.manager.Event()}
    mixin = type("CloneMixin", (util.ExecutorMixin,), own)
    for name, tests in EXECUTORS.items():
        module: Any = importlib.import_module(f"{util.__package__}.{name}")
        util.create_executor_tests(globals(), getattr(module, tests), executor_mixins=(mixin,))
        if name == "test_deadlock":
            # What breaks their pool is in ours the error of the task.
            module.BrokenProcessPool = (ramet.ChildDiedError, SystemExit, pickle.UnpicklingError)
        if name == "test_shutdown":
            module.assert_python_ok = partial(run_with_ours, module.assert_python_ok)
    return unittest.defaultTestLoader.loadTestsFromName("__main__")


def run_with_ours(run: Callable[..., object], *args: str) -> object:
    """Run code that imports an executor by its name, and may give it a context."""
    theirs = "from concurrent.futures import CloneExecutor"
    here = "from ramet.futures import CloneExecutor"
    return run(*(re.sub(_CONTEXT, "", arg.replace(theirs, here)) for arg in args))


_CONTEXT = r",\s+mp_context=(context|get_context\(context\))"


# --- all ----------------------------------------------------------------------------------------


def ours(suite: unittest.TestSuite, left_out: dict[str, str]) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from ours(test, left_out)
        else:
            _, case, name = test.id().rsplit(".", 2)
            if name not in left_out and f"{case}.{name}" not in left_out:
                yield test


if __name__ == "__main__":
    peer = sys.argv[1]
    tests = list(ours(globals()[f"tests_of_{peer}"](), NOT_OURS[peer]))
    if unittest.defaultTestLoader.errors:
        raise ImportError("\n".join(map(str, unittest.defaultTestLoader.errors)))
    if "--short" in sys.argv and peer in SHORT:
        tests = [test for test in tests if type(test).__name__ in SHORT[peer]]
    runner = unittest.TextTestRunner(verbosity=1 + ("-v" in sys.argv))
    result = runner.run(unittest.TestSuite(tests))
    sys.exit(not result.wasSuccessful() or not result.testsRun)
