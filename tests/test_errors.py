"""Bad input for each parameter of clone: the right exception, which names it, and nothing left."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ramet
from ramet import CloneFlags, _clone, _orphans, _stacks
from ramet._errors import advise, call_error, describe_call
from tests.childlib import WALL, Library, load, run, start
from tests.isolated import run_function

pytestmark = pytest.mark.usefixtures("lib")

F = CloneFlags


class State(NamedTuple):
    """What a start that fails must not add to."""

    descriptors: int
    orphans: int
    stacks: int


def state() -> State:
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | WALL)
    return State(len(os.listdir("/proc/self/fd")), len(_orphans.waiting), len(_stacks.pool.idle))


@pytest.fixture
def _nothing_added(lib: Library) -> Iterator[None]:
    run(lib.identity)  # one stack is in the pool
    before = state()
    yield
    after = state()
    assert after[:2] == before[:2]
    assert after.stacks <= before.stacks


def lowest_address(mode: str) -> int:
    """Find memory of this process that may be used in this way."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        extent, found, *_ = line.split()
        if found == mode:
            return int(extent.split("-")[0], 16)
    raise AssertionError(mode)


class Unusable:
    def fileno(self) -> int:
        return -1


TID: dict[str, Any] = {"flags": F.VM | F.CHILD_SETTID | F.CHILD_CLEARTID}
READ_ONLY = lowest_address("r--p")
BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    # what is wrong, parameters, exception, what the message says
    ("exit_signal -1", {"exit_signal": -1}, ValueError, "exit_signal must be 0 to 64, not -1"),
    ("exit_signal 65", {"exit_signal": 65}, ValueError, "exit_signal must be 0 to 64, not 65"),
    ("exit_signal text", {"exit_signal": "x"}, TypeError, "exit_signal"),
    ("exit_signal float", {"exit_signal": 17.5}, TypeError, "exit_signal"),
    ("exit_signal list", {"exit_signal": [17]}, TypeError, "exit_signal"),
    ("stack_size 0", {"stack_size": 0}, ValueError, "stack"),
    ("stack_size -1", {"stack_size": -1}, ValueError, "stack"),
    ("stack_size 1", {"stack_size": 1}, ValueError, "a stack has at least one page"),
    ("stack_size 2**61", {"stack_size": 1 << 61}, OSError, "Cannot allocate memory"),
    ("stack_size 2**63", {"stack_size": 1 << 63}, ValueError, "stack"),
    ("stack_size 2**70", {"stack_size": 1 << 70}, ValueError, "stack"),
    ("stack_size text", {"stack_size": "x"}, TypeError, "stack"),
    ("stack_size float", {"stack_size": 65536.0}, TypeError, "stack"),
    ("no ptid", {"flags": F.PARENT_SETTID}, ValueError, "CLONE_PARENT_SETTID needs ptid"),
    ("no tls", {"flags": F.SETTLS}, ValueError, "CLONE_SETTLS needs tls"),
    ("no ctid", {"flags": F.CHILD_SETTID}, ValueError, "CLONE_CHILD_SETTID needs ctid"),
    (
        "no ctid to clear",
        {"flags": F.CHILD_CLEARTID},
        ValueError,
        "CLONE_CHILD_CLEARTID needs ctid",
    ),
    ("no cgroup", {"flags": F.INTO_CGROUP}, ValueError, "CLONE_INTO_CGROUP needs cgroup"),
    ("ptid NULL", {"ptid": 0}, ValueError, "ptid must not be NULL"),
    ("ptid short", {"ptid": bytearray(3)}, ValueError, "ptid must have the 4 bytes of an int"),
    ("ptid one byte", {"ptid": ctypes.c_char()}, ValueError, "ptid must have the 4 bytes"),
    ("ptid unmapped", {"ptid": 4096}, ValueError, "ptid must be in memory .* 0x1000"),
    ("ptid read-only", {"ptid": READ_ONLY}, ValueError, "ptid must be in memory .*Bad address"),
    ("ptid misaligned", {"ptid": READ_ONLY + 2}, ValueError, "ptid must be aligned to 4 bytes"),
    ("ctid NULL", {"ctid": 0, **TID}, ValueError, "ctid must not be NULL"),
    ("ctid short", {"ctid": bytearray(1), **TID}, ValueError, "ctid must have the 4 bytes"),
    ("ctid unmapped", {"ctid": 1 << 60, **TID}, ValueError, "ctid must be in memory"),
    ("ctid read-only", {"ctid": READ_ONLY, **TID}, ValueError, "ctid must be in memory"),
    ("ctid misaligned", {"ctid": READ_ONLY + 1, **TID}, ValueError, "ctid must be aligned"),
    ("ctid alone", {"ctid": bytearray(4)}, ValueError, "ctid needs CLONE_CHILD_SETTID"),
    ("set_tid 0", {"set_tid": [0]}, ValueError, "set_tid must have positive ids, not 0"),
    ("set_tid -1", {"set_tid": [5, -1]}, ValueError, "set_tid must have positive ids, not -1"),
    ("set_tid 2**31", {"set_tid": [1 << 31]}, ValueError, "set_tid .*not 2147483648"),
    ("set_tid too many", {"set_tid": [1] * 33}, ValueError, "set_tid has 33 ids"),
    ("set_tid too deep", {"set_tid": [9999] * 32}, OSError, "set_tid has more ids than"),
    ("set_tid None", {"set_tid": None}, TypeError, "set_tid must be a sequence of ints"),
    ("set_tid no int", {"set_tid": 0}, TypeError, "set_tid must be a sequence of ints"),
    ("set_tid bytearray", {"set_tid": bytearray(b"a")}, TypeError, "set_tid must be a sequence"),
    ("set_tid float", {"set_tid": [1.5]}, TypeError, "set_tid"),
    ("set_tid text", {"set_tid": "12"}, TypeError, "set_tid"),
    ("set_tid int", {"set_tid": 12}, TypeError, "set_tid"),
    ("set_tid taken", {"set_tid": [os.getpid()]}, FileExistsError, "a task with that id exists"),
    ("cgroup -1", {"cgroup": -1}, ValueError, "cgroup must be a path or a descriptor, not -1"),
    ("cgroup 2**31", {"cgroup": 1 << 31}, ValueError, "cgroup must be a path or a descriptor"),
    ("cgroup closed", {"cgroup": Unusable()}, ValueError, "cgroup must be a path or a descriptor"),
    ("cgroup missing", {"cgroup": "/missing"}, FileNotFoundError, "/missing"),
    ("cgroup a file", {"cgroup": Path("/proc/version")}, NotADirectoryError, "/proc/version"),
    ("cgroup no cgroup", {"cgroup": "/"}, OSError, "cgroup is not a descriptor of a cgroup v2"),
    ("cgroup no descriptor", {"cgroup": 2**31 - 1}, OSError, "CLONE_INTO_CGROUP"),
    ("cgroup float", {"cgroup": 1.5}, TypeError, "cgroup"),
    ("cgroup list", {"cgroup": ["/"]}, TypeError, "cgroup"),
    ("flags text", {"flags": "VM"}, TypeError, "flags"),
    ("flags float", {"flags": 256.0}, TypeError, "flags"),
    ("flags None", {"flags": None}, TypeError, "flags"),
    ("flags negative", {"flags": -1}, ValueError, "flags"),
    ("flags unknown", {"flags": 1 << 40}, ValueError, "unknown clone flags: 0x10000000000"),
    ("flags beyond", {"flags": 1 << 70}, ValueError, "unknown clone flags: 0x400000000000000000"),
    ("flags with signal", {"flags": 17}, ValueError, "unknown clone flags: 0x11"),
    ("flags together", {"flags": F.SIGHAND}, ValueError, "CLONE_SIGHAND without CLONE_VM"),
]


@pytest.mark.parametrize(("parameters", "error", "said"), [bad[1:] for bad in BAD],
                         ids=[bad[0] for bad in BAD])  # fmt: skip
@pytest.mark.usefixtures("_nothing_added", "clone3")
def test_bad(lib: Library, parameters: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said), ramet.clone(lib.identity, **parameters):
        pass  # ends what should not have been started
    assert run(lib.identity, 3).code == 3


@pytest.mark.usefixtures("_nothing_added")
def test_unknown_parameter(lib: Library) -> None:
    with pytest.raises(TypeError, match="stack"):
        start(lib.identity, stack=0)


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["clone3", "clone"])
def test_no_descriptor_left(call: str) -> None:
    run_function(check_no_descriptor_left, call)


def check_no_descriptor_left(call: str) -> None:
    lib = load()
    _clone._clone3.missing = call == "clone"
    word = bytearray(4)
    run(lib.identity)
    before = state()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # state() has a descriptor open when it counts
    resource.setrlimit(resource.RLIMIT_NOFILE, (before.descriptors - 1, hard))
    for flags in (0, F.VM, F.VM | F.VFORK):
        for options in ({}, {"ptid": word}):
            with pytest.raises(OSError, match="Too many open files: clone") as caught:
                start(lib.identity, 3, flags, **options)
            assert caught.value.errno == errno.EMFILE
            del caught  # its frames have the arguments
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    word.extend(b"more")
    assert state()[:2] == before[:2]
    assert run(lib.identity, 3).code == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
@pytest.mark.parametrize("call", ["clone3", "clone"])
def test_too_many_processes(call: str) -> None:
    run_function(check_too_many_processes, call)


def check_too_many_processes(call: str) -> None:
    lib = load()
    _clone._clone3.missing = call == "clone"
    os.setresuid(65534, 65534, 65534)
    before = state()
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    for flags in (0, F.VM, F.VM | F.VFORK, F.VM | F.SIGHAND | F.THREAD):
        said = f"{call}(flags="
        with pytest.raises(BlockingIOError, match=re.escape(said) + ".*RLIMIT_NPROC") as caught:
            ramet.clone(lib.identity, 3, flags)
        assert caught.value.errno == errno.EAGAIN
    assert state()[:2] == before[:2]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_no_permission() -> None:
    run_function(check_no_permission)


def check_no_permission() -> None:
    lib = load()
    os.setresuid(65534, 65534, 65534)
    for flags in (F.NEWUTS, F.NEWNS | F.VM):
        with pytest.raises(PermissionError, match="needs CAP_SYS_ADMIN, or CLONE_NEWUSER beside"):
            start(lib.identity, 3, flags)
    with pytest.raises(PermissionError, match="set_tid needs CAP_CHECKPOINT_RESTORE"):
        start(lib.identity, 3, set_tid=[30_000])


# --- the words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "arguments", "text"),
    [
        (0, {}, "c(flags=0)"),
        (0x100, {"exit_signal": 17}, "c(flags=CLONE_VM, exit_signal=17)"),
        (1, {"exit_signal": 0}, "c(flags=0x1)"),
        (0x4100, {"tls": 1 << 40, "x": None}, "c(flags=CLONE_VM|CLONE_VFORK, tls=0x10000000000)"),
        (0, {"set_tid": [7, 1], "cgroup": 3}, "c(flags=0, set_tid=[7, 1], cgroup=3)"),
        (0, {"set_tid": []}, "c(flags=0)"),
    ],
)  # fmt: skip
def test_describe_call(flags: int, arguments: dict[str, object], text: str) -> None:
    assert describe_call("c", flags, **arguments) == text


def test_call_error() -> None:
    assert str(call_error(errno.EPERM, "c()")) == "[Errno 1] Operation not permitted: c()"
    error = call_error(errno.EAGAIN, "c()", "do this")
    assert isinstance(error, BlockingIOError)
    assert str(error).endswith(": c(); do this")


@pytest.mark.parametrize(
    ("error", "flags", "said"),
    [
        ("EPERM", F.NEWUSER | F.NEWNS, "user namespaces are refused to this process"),
        ("EPERM", F.NEWNS, "CLONE_NEWNS needs CAP_SYS_ADMIN"),
        ("EPERM", F.PIDFD_AUTOKILL, "CLONE_NNP"),
        ("EPERM", F.VM, ""),
        ("EAGAIN", F(0), "RLIMIT_NPROC"),
        ("ENOSPC", F.NEWPID, "max_*_namespaces"),
        ("ENOSPC", F(0), ""),
        ("EBUSY", F.INTO_CGROUP, "controllers"),
        ("EACCES", F.INTO_CGROUP, "cgroup.procs"),
        ("EOPNOTSUPP", F.INTO_CGROUP, "domain invalid"),
        ("EBADF", F.INTO_CGROUP, "cgroup v2 directory"),
        ("EINVAL", F.PIDFD | F.THREAD, "Linux 6.9"),
        ("EINVAL", F.NNP | F.AUTOREAP, "CLONE_AUTOREAP needs Linux 7.1, CLONE_NNP needs"),
        ("EINVAL", F.VM, ""),
        ("ENOMEM", F.VM, ""),
    ],
)
def test_advice(error: str, flags: CloneFlags, said: str) -> None:
    advice = advise(getattr(errno, error), flags)
    assert said in advice
    assert bool(said) == bool(advice)


def test_audit() -> None:
    run_function(check_audit)


def check_audit() -> None:
    """A hook sees each start before it is made, and can refuse it."""
    lib = load()
    events = []

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event == "ramet.clone":
            events.append(args)
            if len(events) > 1:
                raise KeyError(event)

    sys.addaudithook(hook)
    run(lib.identity, 3, F.VM)
    [(fn, flags)] = events
    assert fn == lib.identity
    assert isinstance(flags, int)
    assert flags & F.VM
    before = state()
    with pytest.raises(KeyError):
        start(lib.identity)
    assert state() == before
