"""Run CPython's own tests of asyncio's subprocesses with ramet.aio in its place.

    python tests/peers/run_asyncio.py [-v]

Exits with 0 if all pass but those of NOT_OURS.
"""

import asyncio
import importlib
import sys
import unittest
from collections.abc import Iterator

import ramet.aio

# These replace, or look at, what asyncio is made of inside.
NOT_OURS = {
    "test_pid_not_reaped_before_exit_published": "looks at the threads of asyncio's watcher",
    "test_popen_error": "replaces subprocess.Popen",
    "test_popen_error_with_stdin_pipe": "replaces subprocess.Popen",
    "test_create_subprocess_fails_with_inactive_watcher": "ramet needs no child watcher",
}

for module in (asyncio, asyncio.subprocess):
    module.create_subprocess_exec = ramet.aio.create_subprocess_exec  # type: ignore[attr-defined]
    module.create_subprocess_shell = ramet.aio.create_subprocess_shell  # type: ignore[attr-defined]


def ours(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from ours(test)
        elif test.id().rpartition(".")[2] not in NOT_OURS:
            yield test


if __name__ == "__main__":
    if sys.version_info < (3, 14):
        # As the test with the inactive watcher does, on which the one after it relies.
        asyncio.set_event_loop(None)
    module = importlib.import_module("test.test_asyncio.test_subprocess")
    tests = unittest.TestSuite(ours(unittest.defaultTestLoader.loadTestsFromModule(module)))
    result = unittest.TextTestRunner(verbosity=1 + ("-v" in sys.argv)).run(tests)
    sys.exit(not result.wasSuccessful() or not result.testsRun)
