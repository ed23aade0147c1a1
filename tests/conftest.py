"""Fixtures of all tests, and the check that no test module leaves anything behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ramet import _clone, _orphans, _stacks
from tests.childlib import WALL, Library, build, load

# The C library keeps the stacks of ended threads, each with a guard page, up to 40 MiB of
# them: five of the usual size (allocatestack.c).
_THREADS_STACKS = 5


@pytest.fixture(scope="session", autouse=True)
def _signals_of_the_terminal() -> None:
    """Whoever has started this in the background may have had them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The C functions that children run."""
    build(tmp_path_factory.mktemp("childlib"))
    return load()


@pytest.fixture(params=["clone3", "clone"])
def call(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both system calls: ramet.clone uses the one that is named."""
    name = str(request.param)
    monkeypatch.setattr(_clone._clone3, "missing", name == "clone")
    return name


@pytest.fixture
def clone3(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what clone(2) cannot do."""
    monkeypatch.setattr(_clone._clone3, "missing", False)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A new directory of cgroup v2, which must be empty of tasks at the end of the test."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in mounts:
        if mount[mount.index("-") + 1] == "cgroup2":
            directory = Path(mount[4]) / f"ramet-test-{uuid.uuid4().hex}"
            with suppress(OSError):
                directory.mkdir()
                break
    else:
        pytest.skip("no cgroup v2 that may be written to")
    yield directory
    directory.rmdir()


@pytest.fixture(scope="session")
def as_nobody() -> list[str]:
    """What runs a command as an ordinary user, who can run this interpreter."""
    if os.geteuid() != 0:
        pytest.skip("needs privileges")
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    code = "import asyncio, ramet"  # what it is made of may be in somebody's home
    done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no ordinary user can run {sys.executable}")
    return command


# --- leaks --------------------------------------------------------------------------------------


def _descriptors() -> dict[str, str]:
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing
            found[entry] = os.readlink(f"/proc/self/fd/{entry}")
    return found


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | WALL)
    except ChildProcessError:
        return False
    return True


def _guard_pages() -> int:
    """Count private anonymous mappings of one page without access: each stack of ours has one.

    The number of all mappings would tell of Python's own arenas too.
    """
    count = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        extent, mode, _, _, inode, *_ = line.split()
        first, last = (int(end, 16) for end in extent.split("-"))
        count += mode == "---p" and inode == "0" and last - first == os.sysconf("SC_PAGESIZE")
    return count


@pytest.fixture(scope="module", autouse=True)
def nothing_left() -> Iterator[None]:
    """A module's tests leave no descriptor, child, orphan or stack."""
    gc.collect()
    _stacks.pool.clear()
    descriptors, children, guards = _descriptors(), _has_children(), _guard_pages()
    orphans = len(_orphans.waiting)
    yield
    gc.collect()
    for _ in range(len(_orphans.waiting)):
        _orphans.sweep()
    _stacks.pool.clear()
    assert len(_orphans.waiting) <= orphans
    assert _descriptors() == descriptors
    assert _has_children() == children
    assert _guard_pages() <= guards + _THREADS_STACKS
