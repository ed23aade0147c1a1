"""Run CPython's own tests of a module with ramet in its place.

    python tests/peers/run.py subprocess|asyncio [-v]

Exits with 0 if all pass but those of NOT_OURS.
"""

import asyncio
import importlib
import subprocess
import sys
import unittest
from collections.abc import Iterator

import ramet.aio

TESTS = {"subprocess": "test.test_subprocess", "asyncio": "test.test_asyncio.test_subprocess"}

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


def ours(suite: unittest.TestSuite, left_out: dict[str, str]) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from ours(test, left_out)
        elif test.id().rpartition(".")[2] not in left_out:
            yield test


if __name__ == "__main__":
    peer = sys.argv[1]
    {"subprocess": replace_subprocess, "asyncio": replace_asyncio}[peer]()
    module = importlib.import_module(TESTS[peer])
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    tests = unittest.TestSuite(ours(suite, NOT_OURS[peer]))
    result = unittest.TextTestRunner(verbosity=1 + ("-v" in sys.argv)).run(tests)
    sys.exit(not result.wasSuccessful() or not result.testsRun)
