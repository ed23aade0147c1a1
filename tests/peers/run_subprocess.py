"""Run CPython's own tests of subprocess with ramet.Popen in its place.

    python tests/peers/run_subprocess.py [-v]

Exits with 0 if all pass but those of NOT_OURS.
"""

import importlib
import subprocess
import sys
import unittest
from collections.abc import Iterator

import ramet

# These replace, or look at, what the standard class is made of inside.
NOT_OURS = {
    "test__use_vfork": "replaces subprocess._fork_exec",
    "test_stopped": "replaces os.waitpid, which ramet does not call",
    "test_exception_errpipe_normal": "replaces os.pipe for the pipe that reports errors",
    "test_wait_pidfd_open_error": "replaces os.pidfd_open, which ramet does not call",
    "test_pidfd_open_race": "replaces os.pidfd_open, which ramet does not call",
    "test_pidfd_open_notification_without_immediate_reap": "replaces os.waitpid, and os.pidfd_open",
    "test_exception_errpipe_bad_data": "replaces os.pipe for the pipe that reports errors",
}

subprocess.Popen = ramet.Popen  # type: ignore[assignment,misc] # what run, call and the tests use


def ours(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from ours(test)
        elif test.id().rpartition(".")[2] not in NOT_OURS:
            yield test


if __name__ == "__main__":
    test_subprocess = importlib.import_module("test.test_subprocess")
    tests = unittest.TestSuite(
        ours(unittest.defaultTestLoader.loadTestsFromModule(test_subprocess))
    )
    result = unittest.TextTestRunner(verbosity=1 + ("-v" in sys.argv)).run(tests)
    sys.exit(not result.wasSuccessful() or not result.testsRun)
