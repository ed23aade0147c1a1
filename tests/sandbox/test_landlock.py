"""Landlock: what its rules allow and refuse, each tried inside and outside."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ramet
from ramet import ChildError, Program
from ramet.sandbox import _landlock
from ramet.sandbox._landlock import LOWEST_ABI, add_landlock
from tests.childlib import syscall
from tests.waiting import Background

ABI = _landlock.abi()
SCRATCH = 100
TIOCGPTN = 0x8004_5430
TRUNCATE, IOCTL_DEV, SCOPES = 3, 5, 6  # the versions from which they are there

has_landlock = pytest.mark.skipif(
    ABI < LOWEST_ABI, reason=f"the kernel's version of Landlock is {ABI}, of {LOWEST_ABI}"
)
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs privileges")


def attempt(action: str, directory: Path, *, inside: bool = True) -> int:
    """Do something in Python; its errno, or 0. Inside, `directory`/write may be written to."""
    code = (
        "import ctypes, fcntl, os, socket, subprocess\n"
        f"os.chdir({str(directory)!r})\n"
        f"try:\n    {action}\n"
        "except OSError as error: print(error.errno)\n"
        "else: print(0)\n"
    )

    def confine(program: Program) -> None:
        program.set_no_new_privs()
        rules = add_landlock(
            program,
            SCRATCH,
            writable={str(directory / "write"): False, str(directory / "alone"): True},
            devices=["/dev"],
            files=[],
        )
        program.landlock_restrict_self(rules)

    reader, writer = os.pipe()
    with open(reader, "rb") as file:
        args = [sys.executable, "-I", "-S", "-c", code]
        before = confine if inside else None
        child = ramet.spawn(args, fds={1: writer, 2: writer}, before_exec=before)
        os.close(writer)
        with child:
            said = file.read().decode()
    assert said.strip().isdigit(), said
    return int(said)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("write", "read"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (tmp_path / "alone").write_text("x")
    return tmp_path


def test_the_version() -> None:
    """As the kernel tells it, asked for here."""
    try:
        version = syscall("landlock_create_ruleset", 0, 0, 1)
    except OSError:
        version = 0
    assert _landlock.abi() == version


@has_landlock
@pytest.mark.parametrize(
    ("action", "since"),
    [
        ("open('read/file', 'r+')", 0),
        ("open('read/new', 'w')", 0),
        ("os.mkdir('read/new')", 0),
        ("os.symlink('x', 'read/new')", 0),
        ("os.mkfifo('read/new')", 0),
        ("os.unlink('read/file')", 0),
        ("os.rename('read/file', 'read/other')", 0),
        ("socket.socket(socket.AF_UNIX).bind('read/socket')", 0),
        ("os.truncate('read/file', 0)", TRUNCATE),
    ],
)
def test_what_may_be_read_only(directory: Path, action: str, since: int) -> None:
    if since > ABI:
        pytest.skip(f"needs version {since} of Landlock")
    assert attempt(action, directory) == errno.EACCES
    assert sorted(os.listdir(directory / "read")) == ["file"]
    assert (directory / "read" / "file").read_text() == "x"
    assert attempt(action, directory, inside=False) == 0


@has_landlock
@pytest.mark.parametrize("action", ["os.link('read/file', 'write/new')",
                                    "os.rename('read/file', 'write/new')"])  # fmt: skip
def test_what_would_become_writable(directory: Path, action: str) -> None:
    """Another name of a file, where more is allowed."""
    assert attempt(action, directory) in {errno.EXDEV, errno.EACCES}
    assert os.listdir(directory / "write") == ["file"]
    assert attempt(action, directory, inside=False) == 0


@has_landlock
@pytest.mark.parametrize(
    "action",
    [
        "open('read/file').read()",
        "os.listdir('read')",
        "subprocess.run(['/bin/true'], check=True)",
        "open('write/file', 'r+').write('y')",
        "open('write/new', 'w')",
        "os.truncate('write/file', 0)",
        "os.mkdir('write/new')",
        "os.symlink('x', 'write/new')",
        "os.mkfifo('write/new')",
        "os.unlink('write/file')",
        "os.mkdir('write/a'); os.rename('write/file', 'write/a/file')",
        "socket.socket(socket.AF_UNIX).bind('write/socket')",
        "open('alone', 'r+').write('y')",
        "open('alone', 'w')",
        "open('/dev/null', 'w').write('y')",
        "os.openpty()",
        "os.kill(os.getpid(), 0)",
    ],
)
def test_what_is_allowed(directory: Path, action: str) -> None:
    assert attempt(action, directory) == 0


@has_landlock
@root
@pytest.mark.parametrize("kind", ["S_IFCHR", "S_IFBLK"])
def test_no_devices_are_made(directory: Path, kind: str) -> None:
    """Not even where all else is allowed."""
    action = f"import stat; os.mknod('write/new', 0o600 | stat.{kind}, os.makedev(1, 3))"
    assert attempt(action, directory) == errno.EACCES
    assert attempt(action, directory, inside=False) == 0


@has_landlock
@pytest.mark.skipif(ABI < IOCTL_DEV, reason=f"needs version {IOCTL_DEV} of Landlock")
def test_devices(directory: Path) -> None:
    """Those below /dev, as all that is there, can be controlled."""
    action = f"fcntl.ioctl(os.open('/dev/ptmx', os.O_RDWR), {TIOCGPTN}, bytes(4))"
    assert attempt(action, directory) == 0


@pytest.fixture
def server() -> Iterator[str]:
    """An abstract socket that somebody outside listens at."""
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0ramet-test-{os.getpid()}")
        listener.listen()
        yield f"\0ramet-test-{os.getpid()}"


@has_landlock
@pytest.mark.skipif(ABI < SCOPES, reason=f"needs version {SCOPES} of Landlock")
def test_abstract_sockets_of_others(directory: Path, server: str) -> None:
    action = f"socket.socket(socket.AF_UNIX).connect({server!r})"
    assert attempt(action, directory) == errno.EPERM
    assert attempt(action, directory, inside=False) == 0


@has_landlock
@pytest.mark.skipif(ABI < SCOPES, reason=f"needs version {SCOPES} of Landlock")
def test_signals_to_others(directory: Path) -> None:
    action = f"os.kill({os.getpid()}, 0)"
    assert attempt(action, directory) == errno.EPERM
    assert attempt(action, directory, inside=False) == 0


# --- the steps ------------------------------------------------------------------------------------


def spell(monkeypatch: pytest.MonkeyPatch, version: int) -> Program:
    monkeypatch.setattr(_landlock, "abi", lambda: version)
    program = Program()
    add_landlock(program, SCRATCH, writable={"/a": False, "/b": True}, devices=["/dev"], files=[])
    return program


@pytest.mark.parametrize(
    ("version", "handled", "size"),
    [
        (2, 0x3FFF, 8),
        (3, 0x7FFF, 8),
        (4, 0x7FFF, 8),
        (5, 0xFFFF, 8),
        (6, 0xFFFF, 24),
        (9, 0xFFFF, 24),
    ],
)
def test_what_is_handled(
    monkeypatch: pytest.MonkeyPatch, version: int, handled: int, size: int
) -> None:
    """All that the version knows; of a newer one, what this build does."""
    made: list[bytes] = []
    original = Program.syscall

    def record(self: Program, name: str, *args: object, **options: object) -> object:
        if name == "landlock_create_ruleset":
            assert isinstance(args[0], bytes)
            made.append(args[0])
        return original(self, name, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Program, "syscall", record)
    program = spell(monkeypatch, version)
    (attributes,) = made
    assert len(attributes) == size
    assert int.from_bytes(attributes[:8], "little") == handled
    assert bytes(attributes[8:16]) == bytes(len(attributes[8:16]))  # nothing of the network
    assert str(program).count("landlock_add_rule") == 4  # "/", /dev, /a, /b


@has_landlock
def test_what_is_missing_is_an_error(directory: Path) -> None:
    """It names the file, before anything is run."""
    missing = str(directory / "missing")

    def confine(program: Program) -> None:
        add_landlock(program, SCRATCH, writable={missing: False}, devices=[], files=[])

    with pytest.raises(FileNotFoundError) as caught:
        ramet.spawn(["true"], before_exec=confine)
    assert isinstance(caught.value, ChildError)
    assert caught.value.filename == missing


def test_the_probe_does_no_harm() -> None:
    """It is asked in a child, also by several threads at once."""
    _landlock.abi.cache_clear()
    ask: Callable[[], int] = _landlock.abi
    assert {each.result() for each in [Background(ask) for _ in range(4)]} == {ABI}
