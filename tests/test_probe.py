"""What probe() says, and that it is so."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import ramet
from ramet import CloneFlags, _native
from ramet._flags import CLONE3_ONLY
from tests import seccomp
from tests.childlib import WALL, Library, run, start, start_thread
from tests.isolated import run_function

_F = CloneFlags
NAMES = [str(flag.name) for flag in CloneFlags]
FILTERS = pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM], ids=["ENOSYS", "EPERM"])


def test_the_answer_is_kept() -> None:
    assert ramet.probe() is ramet.probe()


def test_shape() -> None:
    support = ramet.probe()
    assert support.clone3
    assert support.flags & _F.VM
    assert support.fields <= {"set_tid", "cgroup"}
    assert not any(flag & support.flags for flag in support.refused)
    assert sum(support.refused) + support.flags == sum(CloneFlags)
    assert all(name in errno.errorcode.values() for name in support.refused.values())
    assert ("cgroup" in support.fields) == bool(support.flags & _F.INTO_CGROUP)


def test_nothing_is_started_or_left() -> None:
    run_function(check_nothing_is_left)


def check_nothing_is_left() -> None:
    def state() -> object:
        return sorted(os.listdir("/proc/self/fd")), os.listdir("/proc/self/task")

    before = state()
    ramet.probe()
    assert state() == before
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | WALL)


def test_a_fork_asks_anew() -> None:
    run_function(check_a_fork_asks_anew)


def check_a_fork_asks_anew() -> None:
    assert ramet.probe().clone3
    pid = os.fork()
    if pid == 0:
        seccomp.refuse(seccomp.CLONE3, errno.ENOSYS)
        os._exit(ramet.probe().clone3)
    assert os.waitpid(pid, 0)[1] == 0


# --- agreement with real starts -----------------------------------------------------------------

_COMPANIONS = {
    _F.SIGHAND: _F.VM,
    _F.NNP: _F.VM,
    _F.PIDFD_AUTOKILL: _F.PIDFD | _F.AUTOREAP | _F.NNP,
}


@pytest.mark.parametrize("flag", CloneFlags, ids=NAMES)
@pytest.mark.usefixtures("clone3")
def test_agrees_with_a_real_start(
    flag: CloneFlags, lib: Library, request: pytest.FixtureRequest
) -> None:
    if flag == _F.PARENT:
        pytest.skip("would leave a child to the parent of the tests; see test_flags_effects")
    word = bytearray(4)
    parameters: dict[CloneFlags, Callable[[], dict[str, object]]] = {
        _F.SETTLS: lambda: {"tls": bytearray(4096)},
        _F.PARENT_SETTID: lambda: {"ptid": word},
        _F.CHILD_SETTID: lambda: {"ctid": word},
        _F.CHILD_CLEARTID: lambda: {"ctid": word},
        _F.INTO_CGROUP: lambda: {"cgroup": request.getfixturevalue("cgroup")},
    }
    options = parameters.get(flag, dict)()
    support = ramet.probe()
    refusal = support.refused.get(flag)
    if flag == _F.THREAD:
        assert refusal is None
        with start_thread(lib.identity, 5) as thread:
            assert thread.join() == 5
    elif refusal is None:
        status = run(lib.identity, 5, flag | _COMPANIONS.get(flag, _F(0)), **options)
        assert status.code == 5
    elif flag == _F.DETACHED:
        with pytest.raises(ValueError, match="CLONE_DETACHED"):
            start(lib.identity, 5, flag)
    else:
        with pytest.raises(OSError, match="clone3") as caught:
            start(lib.identity, 5, flag | _COMPANIONS.get(flag, _F(0)), **options)
        number = caught.value.errno
        assert number is not None
        assert errno.errorcode[number] == refusal


def test_unprivileged() -> None:
    run_function(check_unprivileged)


def check_unprivileged() -> None:
    probe = ramet.probe  # imported now: its file may be out of reach for others
    if os.getuid() == 0:
        os.setuid(1000)
    support = probe()
    for flag in (_F.NEWNS, _F.NEWUTS, _F.NEWIPC, _F.NEWPID, _F.NEWNET, _F.NEWCGROUP, _F.NEWTIME):
        assert support.refused[flag] == "EPERM"
        with pytest.raises(PermissionError, match=f"CLONE_{flag.name} needs CAP_SYS_ADMIN"):
            start(_native.nothing, flags=flag)
    userns = Path("/proc/sys/user/max_user_namespaces").read_text().strip()
    assert (_F.NEWUSER in support.flags) or userns == "0"


# --- filters ------------------------------------------------------------------------------------


@FILTERS
def test_filter(error: int) -> None:
    run_function(check_filter, error)


def check_filter(error: int) -> None:
    before = ramet.probe()
    ramet._probe._probe.cache_clear()
    seccomp.refuse(seccomp.CLONE3, error)
    support = ramet.probe()
    assert not support.clone3
    assert support.fields == frozenset()
    assert support.flags == before.flags & ~CLONE3_ONLY | _F.DETACHED
    assert set(support.refused) == {flag for flag in CloneFlags if flag & CLONE3_ONLY}
    assert set(support.refused.values()) == {"ENOSYS"}
