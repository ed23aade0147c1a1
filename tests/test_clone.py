"""clone(): what it starts, and with what it starts it by itself."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import SupportsIndex

import pytest

import ramet
from ramet import CloneFlags
from tests.childlib import Library, Script, run, start, start_thread
from tests.waiting import running, running_thread

pytestmark = pytest.mark.usefixtures("lib")

F = CloneFlags
memory = pytest.mark.parametrize(
    "flags", [0, F.VM, F.VM | F.VFORK], ids=["copied", "shared", "vfork"]
)


def test_what_is_returned(call: str, lib: Library) -> None:
    for flags in (0, F.VM, F.VM | F.VFORK, F.VM | F.SIGHAND):
        with ramet.clone(lib.identity, 3, flags) as child:
            assert type(child) is ramet.Child
    with ramet.clone(lib.identity, 3, F.VM | F.SIGHAND | F.THREAD) as thread:
        assert type(thread) is ramet.Thread


class Flags:
    """As an integer of numpy."""

    def __index__(self) -> int:
        return int(F.VM | F.VFORK)


@pytest.mark.parametrize("flags", [0x4100, F.VM | F.VFORK, Flags()], ids=lambda f: type(f).__name__)
def test_kinds_of_flags(lib: Library, flags: SupportsIndex) -> None:
    word = ctypes.c_long(41)
    assert run(lib.increment, word, flags).code == 0  # type: ignore[arg-type]
    assert word.value == 42


def test_parameters_by_keyword_only(lib: Library) -> None:
    with pytest.raises(TypeError, match="positional"):
        ramet.clone(lib.identity, 3, 0, 17)  # type: ignore[call-arg]


@memory
def test_the_function_is_called_once(call: str, lib: Library, flags: int) -> None:
    script = Script()
    count = script.place(ctypes.c_long)
    run(lib.increment, ctypes.addressof(count), flags)
    assert count.value == 1


@memory
@pytest.mark.parametrize("exit_signal", [None, 17, 0])
def test_exit_signal_by_default(call: str, flags: int, exit_signal: int | None) -> None:
    """SIGCHLD, of which waitid without __WALL is the test."""
    with running(flags & ~F.VFORK, exit_signal=exit_signal) as (child, _):
        if exit_signal == 0:
            with pytest.raises(ChildProcessError):
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        else:
            assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def test_all_signals_are_blocked_where_handlers_are_shared() -> None:
    """Python's handler runs in Python's thread, not in the task that gets the signal."""
    script = Script()
    mask = script.place(ctypes.c_ulong)
    script.call("rt_sigprocmask", signal.SIG_BLOCK, 0, mask, 8)
    start_thread(script).join()
    can_be_blocked = (1 << 64) - 1 & ~(1 << (signal.SIGKILL - 1) | 1 << (signal.SIGSTOP - 1))
    assert mask.value == can_be_blocked


@memory
def test_ptid(call: str, lib: Library, flags: int) -> None:
    """Is there before the call returns, and implies its flag."""
    for asked in (flags, flags | F.PARENT_SETTID):
        word = ctypes.c_int(-1)
        with start(lib.identity, 3, asked, ptid=word) as child:
            assert word.value == child.pid


def test_ptid_of_a_thread(call: str) -> None:
    word = ctypes.c_int(-1)
    with running_thread(ptid=word) as (thread, _):
        assert word.value == thread.tid


@memory
def test_ctid(call: str, lib: Library, flags: int) -> None:
    word = ctypes.c_int(-1)
    with start(lib.identity, 3, flags | F.CHILD_SETTID, ctid=word) as child:
        child.wait()
        assert word.value == (child.pid if flags & F.VM else -1)
    with start(lib.identity, 3, flags | F.CHILD_CLEARTID, ctid=word) as child:
        child.wait()
        assert (word.value == 0) == bool(flags & F.VM)


def test_ctid_tells_whether_the_child_has_gone(call: str) -> None:
    word = ctypes.c_int(0)
    with running(F.VM | F.CHILD_CLEARTID, ctid=word) as (child, gate):
        assert word.value == 1
        gate.open()
        child.wait()
        assert word.value == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to choose ids")
@pytest.mark.usefixtures("clone3")
@memory
def test_set_tid(lib: Library, flags: int) -> None:
    free = next(pid for pid in range(30_000, 10_000, -1) if not Path(f"/proc/{pid}").exists())
    for ids in ([free], (free,)):
        with start(lib.identity, 3, flags, set_tid=ids) as child:
            assert child.pid == free
            assert child.wait().code == 3


class Directory:
    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_DIRECTORY)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.mark.usefixtures("clone3")
@pytest.mark.parametrize("kind", ["str", "Path", "descriptor", "fileno"])
def test_cgroup(cgroup: Path, kind: str) -> None:
    """A descriptor that was given stays open, one that was opened here is closed."""
    directory = Directory(cgroup)
    before = os.listdir("/proc/self/fd")
    kinds = {"str": str(cgroup), "Path": cgroup, "descriptor": directory.fileno()}
    with running(cgroup=kinds.get(kind, directory)) as (child, _):
        where = Path(f"/proc/{child.pid}/cgroup").read_text()
        assert where.rstrip().endswith(cgroup.name)
        assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    os.fstat(directory.fileno())
    directory.close()


def test_a_failed_start_says_what_was_asked_for(lib: Library) -> None:
    word = ctypes.c_int()
    with pytest.raises(FileExistsError) as caught:
        start(lib.identity, 3, F.VM, ptid=word, set_tid=[os.getpid()], stack_size=1 << 17)
    text = str(caught.value)
    for part in (
        "[Errno 17] File exists: clone3(flags=CLONE_VM|CLONE_PIDFD|CLONE_PARENT_SETTID|",
        "exit_signal=17",
        "stack_size=0x20000",
        f"parent_tid={ctypes.addressof(word):#x}",
        f"set_tid=[{os.getpid()}]",
    ):
        assert part in text
