"""Attacks: each fails in a sandbox, and is shown to work where there is none.

All are made at once for each user who starts sandboxes; a test looks at what came of one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.assaults import ASSAULTS
from tests.sandbox.attacked import INSIDE, NOBODY, Outcomes
from tests.sandbox.attacks import BROKEN, HOST, PROBES, ROOT, SUCCEEDED

IS_ROOT = os.geteuid() == 0
USERS = ("root", "user")
_TESTS = str(Path(__file__).parents[2])
_ABSENT = (
    "ENOSYS",
    "EAFNOSUPPORT",
    "EOPNOTSUPP",
    "ENODEV",
)  # what a kernel, or a file system, has not


def _environment() -> dict[str, str]:
    import ramet

    # Where ramet and what it uses is, for an interpreter of another place.
    site = str(Path(ramet.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([_TESTS, site])}


@lru_cache(maxsize=1)
def python_of_users() -> str:
    """An interpreter that an ordinary user can run: ours may lie in the home of user 0."""
    identity = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if IS_ROOT else {}
    for python in (sys.executable, "/usr/bin/python3"):
        code = (
            f"import ramet, sys; assert sys.version_info[:2] == {sys.version_info[:2]}; "
            "ramet.Sandbox(python=True, optional=['landlock']).receipt"
        )
        try:
            subprocess.run(
                [python, "-c", code],
                env=_environment(),
                stderr=subprocess.DEVNULL,
                check=True,
                **identity,  # type: ignore[call-overload]
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("no interpreter that an ordinary user can run sandboxes with")


@pytest.fixture(scope="session")
def setuid_program() -> Iterator[str]:
    """A program of user 0 with the set-user-ID bit, where that works."""
    with tempfile.TemporaryDirectory() as directory:
        path = shutil.copy(shutil.which("id") or "", directory)
        os.chmod(directory, 0o755)  # noqa: S103 - others are to see it
        os.chmod(path, 0o4755)  # noqa: S103 - the same
        yield path if IS_ROOT and not os.statvfs(path).f_flag & os.ST_NOSUID else ""


@pytest.fixture(scope="session", params=USERS)
def user(request: pytest.FixtureRequest) -> str:
    """Who starts the sandboxes."""
    if request.param == "root" and not IS_ROOT:
        pytest.skip("only user 0 can start sandboxes as user 0")
    return str(request.param)


def run_as(user: str, module: str, *args: str) -> Any:
    """Run a module of the tests as a user; what it prints."""
    nobody = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    before = ["setpriv", *nobody] if IS_ROOT and user == "user" else []
    done = subprocess.run(
        [*before, python_of_users(), "-W", "error", "-m", f"tests.sandbox.{module}", *args],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def outcomes(user: str, setuid_program: str) -> Outcomes:
    """What came of all probes."""
    found: Outcomes = run_as(user, "attacked", python_of_users(), setuid_program)
    return found


@pytest.fixture(scope="session")
def faults(user: str) -> dict[str, str]:
    """What was wrong with each assault."""
    found: dict[str, str] = run_as(user, "assaults")
    return found


@pytest.mark.parametrize("name", ASSAULTS)
def test_assault(faults: dict[str, str], name: str) -> None:
    assert not faults[name]


@pytest.mark.parametrize("name", PROBES)
def test_it_fails_inside(outcomes: Outcomes, name: str) -> None:
    for where in INSIDE:
        outcome = outcomes[where][name]
        assert outcome != SUCCEEDED, where
        assert not outcome.startswith((BROKEN, "SIGALRM")), where


@pytest.mark.parametrize("name", PROBES)
def test_it_works_elsewhere(outcomes: Outcomes, name: str, setuid_program: str) -> None:
    """Otherwise that it fails inside would say nothing."""
    probe = PROBES[name]
    if not outcomes[probe.where]:
        pytest.skip(f"it would succeed for {ROOT} only")
    for path, (lowest, highest) in probe.sysctls.items():
        file = Path("/proc/sys", path)
        if file.exists() and not lowest <= int(file.read_text()) <= highest:
            pytest.skip(f"the sysctl {path} forbids it everywhere")
    if name == "run_a_setuid_program" and not setuid_program:
        pytest.skip("it takes user 0 to make such a program, and a file system without nosuid")
    outcome = outcomes[probe.where][name]
    if probe.by_errno:
        assert outcome not in {SUCCEEDED, *(outcomes[where][name] for where in INSIDE)}
        return
    if outcome in _ABSENT:
        pytest.skip(f"this kernel does not have it: {outcome}")
    if outcome == "ENOENT" and name.startswith("open_"):
        pytest.skip("this kernel does not have the file")
    assert outcome == SUCCEEDED, probe.where


def test_most_are_shown_to_work() -> None:
    """Not so many conditions that nothing is shown."""
    assert sum(probe.where == HOST and not probe.by_errno for probe in PROBES.values()) > 50
