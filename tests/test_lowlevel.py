"""ramet.lowlevel: the bare system calls."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import SIGCHLD, SIGUSR1
from typing import Any

import pytest

from ramet import CloneFlags, lowlevel
from tests.childlib import WALL, Library, load
from tests.isolated import run_function
from tests.waiting import counted, until

pytestmark = pytest.mark.usefixtures("lib")

VM, VFORK, PIDFD = CloneFlags.VM, CloneFlags.VFORK, CloneFlags.PIDFD
SETTID, CLEARTID = CloneFlags.CHILD_SETTID, CloneFlags.CHILD_CLEARTID
PARENT_SETTID = CloneFlags.PARENT_SETTID
SIZE = 64 * 1024
kinds = pytest.mark.parametrize("flags", [0, VM, VM | VFORK], ids=["copied", "shared", "vfork"])


@pytest.fixture
def stack() -> Iterator[int]:
    """The lowest address of a stack. A child with a copy has it too: it is shared memory."""
    with mmap.mmap(-1, SIZE) as memory:
        yield ctypes.addressof((ctypes.c_char * SIZE).from_buffer(memory))
        import gc

        gc.collect()  # the object of ctypes, which keeps the mapping open


@pytest.fixture(params=["clone", "clone3"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def start(name: str, fn: int, arg: int, flags: int, stack: int, **pointers: Any) -> int:
    """Make either call in the same way, with SIGCHLD at the end."""
    if name == "clone":
        at = {"ptid": pointers.get("parent_tid", 0), "ctid": pointers.get("child_tid", 0)}
        at["ptid"] = pointers.get("pidfd", at["ptid"])
        return lowlevel.clone(fn, arg, flags | SIGCHLD, stack + SIZE, **at)
    return lowlevel.clone3(
        fn, arg, flags=flags, exit_signal=SIGCHLD, stack=stack, stack_size=SIZE, **pointers
    )


def code_of(pid: int) -> int:
    info = os.waitid(os.P_PID, pid, os.WEXITED | WALL)
    assert info is not None
    assert info.si_code == os.CLD_EXITED
    return info.si_status


@kinds
def test_start(name: str, lib: Library, stack: int, flags: int) -> None:
    pid = start(name, lib.identity, 0x107, flags, stack)
    assert isinstance(pid, int)
    assert code_of(pid) == 7


@kinds
def test_pidfd(name: str, lib: Library, stack: int, flags: int) -> None:
    word = ctypes.c_int(-1)
    pid = start(name, lib.identity, 7, flags | PIDFD, stack, pidfd=ctypes.addressof(word))
    assert select.select([word.value], [], []) == ([word.value], [], [])
    info = os.waitid(os.P_PIDFD, word.value, os.WEXITED)
    assert info is not None
    assert info.si_pid == pid
    os.close(word.value)


def test_tids(name: str, lib: Library, stack: int) -> None:
    parent, child = ctypes.c_int(-1), ctypes.c_int(-1)
    pointers = {"parent_tid": ctypes.addressof(parent), "child_tid": ctypes.addressof(child)}
    flags = VM | VFORK | PARENT_SETTID
    pid = start(name, lib.identity, 7, flags | SETTID, stack, **pointers)
    assert parent.value == child.value == pid
    code_of(pid)
    code_of(start(name, lib.identity, 7, flags | CLEARTID, stack, **pointers))
    assert child.value == 0


def test_argument_and_memory(name: str, lib: Library, stack: int) -> None:
    word = ctypes.c_long(41)
    code_of(start(name, lib.increment, ctypes.addressof(word), VM, stack))
    assert word.value == 42


def test_stack_may_be_misaligned(lib: Library, stack: int) -> None:
    for off in range(1, 16):
        pid = lowlevel.clone(lib.identity, 7, VM | VFORK | SIGCHLD, stack + SIZE - off)
        assert code_of(pid) == 7
        size = SIZE - off
        pid = lowlevel.clone3(
            lib.identity, 7, flags=VM | VFORK, exit_signal=SIGCHLD, stack=stack, stack_size=size
        )
        assert code_of(pid) == 7


def fails(error: int, *words: str) -> Any:
    """Expect an OSError with this errno, whose message has all words in this order."""
    pattern = ".*".join(re.escape(word) for word in (os.strerror(error), *words))
    return pytest.raises(OSError, match=rf"^\[Errno {error}\] {pattern}")


def test_nothing_to_call(name: str, stack: int) -> None:
    with fails(errno.EINVAL, f"{name}(flags=CLONE_VM, exit_signal=17"):
        start(name, 0, 0, VM, stack)


def test_no_stack(lib: Library, stack: int) -> None:
    with fails(errno.EINVAL, "clone(flags=CLONE_VM, exit_signal=17)"):
        lowlevel.clone(lib.identity, 0, VM | SIGCHLD, 0)
    with fails(errno.EINVAL, "clone3(flags=CLONE_VM)"):
        lowlevel.clone3(lib.identity, 0, flags=VM)
    for size in (0, 31):
        with fails(errno.EINVAL, "clone3(flags=CLONE_VM, ", f"stack={stack:#x}"):
            lowlevel.clone3(lib.identity, 0, flags=VM, stack=stack, stack_size=size)


def test_combinations_are_the_kernels_to_refuse(name: str, lib: Library, stack: int) -> None:
    with fails(errno.EINVAL, f"{name}(flags=CLONE_SIGHAND, exit_signal=17"):
        start(name, lib.identity, 0, CloneFlags.SIGHAND, stack)


def test_unknown_flag(lib: Library, stack: int) -> None:
    with fails(errno.EINVAL, "flags=CLONE_VM|0x4000000000000000"):
        start("clone3", lib.identity, 0, VM | 1 << 62, stack)


def test_set_tid(lib: Library, stack: int) -> None:
    with fails(errno.EEXIST, f"set_tid=[{os.getpid()}]", "a task with that id exists"):
        lowlevel.clone3(
            lib.identity, 0, stack=stack, stack_size=SIZE, exit_signal=17, set_tid=[os.getpid()]
        )
    with fails(errno.EINVAL, "set_tid=[0]"):
        lowlevel.clone3(lib.identity, 0, stack=stack, stack_size=SIZE, set_tid=[0])
    with pytest.raises(OverflowError):
        lowlevel.clone3(lib.identity, 0, set_tid=[1 << 31])
    for wrong in ([1.5], ["1"], 3):
        with pytest.raises(TypeError):
            lowlevel.clone3(lib.identity, 0, set_tid=wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to choose ids")
def test_set_tid_is_what_is_got(lib: Library, stack: int) -> None:
    free = next(pid for pid in range(30_000, 10_000, -1) if not Path(f"/proc/{pid}").exists())
    pid = lowlevel.clone3(
        lib.identity, 7, stack=stack, stack_size=SIZE, exit_signal=SIGCHLD, set_tid=[free]
    )
    assert pid == free
    assert code_of(pid) == 7


@pytest.mark.parametrize("cgroup", [0, 2**31 - 1])
def test_cgroup(lib: Library, stack: int, cgroup: int) -> None:
    with fails(errno.EBADF, "CLONE_INTO_CGROUP", "cgroup"):
        lowlevel.clone3(
            lib.identity,
            0,
            flags=CloneFlags.INTO_CGROUP,
            stack=stack,
            stack_size=SIZE,
            cgroup=cgroup,
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_permission() -> None:
    run_function(check_permission)


def check_permission() -> None:
    lib = load()
    memory = mmap.mmap(-1, SIZE)
    stack = ctypes.addressof((ctypes.c_char * SIZE).from_buffer(memory))
    os.setresuid(65534, 65534, 65534)
    said = "CLONE_NEWUTS needs CAP_SYS_ADMIN, or CLONE_NEWUSER beside it"
    for name in ("clone", "clone3"):
        with fails(errno.EPERM, f"{name}(flags=CLONE_NEWUTS", said):
            start(name, lib.identity, 0, CloneFlags.NEWUTS, stack)
    with fails(errno.EPERM, "set_tid=[30000]", "CAP_CHECKPOINT_RESTORE"):
        lowlevel.clone3(lib.identity, 0, stack=stack, stack_size=SIZE, set_tid=[30000])


WORDS = {
    "clone": "fn arg flags child_stack ptid newtls ctid",
    "clone3": "fn arg flags pidfd child_tid parent_tid exit_signal stack stack_size tls cgroup",
}


@pytest.mark.parametrize(
    ("name", "word"), [(name, word) for name, words in WORDS.items() for word in words.split()]
)
@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, OverflowError), (1 << 64, OverflowError), ("1", TypeError), (1.0, TypeError)],
    ids=str,
)
def test_words(name: str, word: str, value: Any, error: type[Exception]) -> None:
    """Nothing is started: fn is NULL where it is not what is wrong."""
    words: dict[str, Any] = {"fn": 0, "arg": 0}
    if name == "clone":
        words |= {"flags": 0, "child_stack": 0}
    call = getattr(lowlevel, name)
    with pytest.raises(error):
        call(**{**words, word: value})


def test_exit_signal_is_ours_to_choose(lib: Library, stack: int) -> None:
    with counted(SIGUSR1) as seen:
        assert code_of(lowlevel.clone(lib.identity, 7, SIGUSR1, stack + SIZE)) == 7
        until(lambda: seen == [SIGUSR1])
    with counted(SIGUSR1) as seen:
        pid = lowlevel.clone3(lib.identity, 7, stack=stack, stack_size=SIZE, exit_signal=SIGUSR1)
        assert code_of(pid) == 7
        until(lambda: seen == [SIGUSR1])


def test_sizes() -> None:
    """struct clone_args of <linux/sched.h>, as published."""
    sizes = [getattr(lowlevel, f"CLONE_ARGS_SIZE_VER{version}") for version in range(3)]
    assert sizes == [64, 80, 88]


def test_audit() -> None:
    run_function(check_audit)


def check_audit() -> None:
    events = []
    sys.addaudithook(lambda event, args: events.append(args) if event == "ramet.clone" else None)
    with fails(errno.EINVAL):
        lowlevel.clone(0, 0, 1, 2)
    with fails(errno.EINVAL):
        lowlevel.clone3(0, 0, flags=3)
    assert events == [(0, 1), (0, 3)]
