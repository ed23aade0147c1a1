"""Run Python code in a process of its own: what may kill the interpreter, or change it for good."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def run_python(
    code: str, *, check: bool = True, before: Sequence[str] = (), dev: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter that can import the tests, by another command if need be.

    With `check`, anything but success, and any warning, is an AssertionError that has the output.
    Without `dev`, asyncio does not say which callbacks of it were slow.
    """
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*before, sys.executable, *(["-X", "dev"] if dev else []), "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if check:
        said = f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, said
        # A warning in __del__ cannot be raised, and is written there.
        assert done.stderr == "", said
    return done


def run_function(function: Callable[..., None], *args: object) -> None:
    """Run a function of a test module so. Arguments are passed by their repr.

    What it asserts is reported as the new interpreter's output.
    """
    arguments = ", ".join(map(repr, args))
    run_python(f"import {function.__module__} as m; m.{function.__qualname__}({arguments})")
