"""ramet.clone where clone3 is filtered: as container runtimes do it, with either error."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import ramet
from ramet import CloneFlags, _clone
from tests import seccomp
from tests.childlib import Script, Sigaction, load, number, run, start, start_thread
from tests.isolated import run_function

pytestmark = [
    pytest.mark.usefixtures("lib"),
    pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM], ids=["ENOSYS", "EPERM"]),
]

_F = CloneFlags
KINDS = (_F(0), _F.VM, _F.VM | _F.VFORK)


def fails_with(error: int, words: str, start: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=re.escape(words)) as caught:
        start()
    assert caught.value.errno == error


def test_same_results(error: int) -> None:
    run_function(check_same_results, error)


def check_same_results(error: int) -> None:
    seccomp.refuse(seccomp.CLONE3, error)
    lib = load()
    for flags in KINDS:
        assert run(lib.identity, 7, flags).code == 7
        assert run(lib.raise_signal, signal.SIGTERM, flags).signal == signal.SIGTERM
        assert run(lib.identity, 7, flags, exit_signal=0).code == 7
    word = ctypes.c_long(1)
    run(lib.increment, word, _F.VM)
    assert word.value == 2
    with start_thread(lib.identity, 1 << 40) as thread:
        assert thread.join() == 1 << 40


def test_handlers_are_reset(error: int) -> None:
    run_function(check_handlers_are_reset, error)


def check_handlers_are_reset(error: int) -> None:
    number("rt_sigaction")  # asks the compiler, which may not start with the filter
    seccomp.refuse(seccomp.CLONE3, error)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.signal(signal.SIGRTMAX, lambda *_: None)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    numbers = (signal.SIGUSR1, signal.SIGRTMAX, signal.SIGUSR2, signal.SIGINT)
    for flags in KINDS:
        script = Script()
        actions = [script.place(Sigaction) for _ in numbers]
        for which, action in zip(numbers, actions, strict=True):
            script.call("rt_sigaction", which, 0, action, 8)
        run(script, flags=flags)
        handlers = [action.handler for action in actions]
        assert handlers == [signal.SIG_DFL, signal.SIG_DFL, signal.SIG_IGN, signal.SIG_DFL]
    os.kill(os.getpid(), signal.SIGUSR1)  # ours still has its handler


def test_pidfd_beside_ptid(error: int) -> None:
    run_function(check_pidfd_beside_ptid, error)


def check_pidfd_beside_ptid(error: int) -> None:
    seccomp.refuse(seccomp.CLONE3, error)
    for flags in KINDS:
        word = ctypes.c_int()
        with start(load().identity, 7, flags | _F.PIDFD, ptid=word) as child:
            assert word.value == child.pid
            assert f"\nPid:\t{child.pid}\n" in Path(f"/proc/self/fdinfo/{child.pidfd}").read_text()
            assert not os.get_inheritable(child.pidfd)
            assert child.wait().code == 7


def test_what_is_lost_is_named(error: int, cgroup: Path) -> None:
    run_function(check_what_is_lost_is_named, error, str(cgroup))


def check_what_is_lost_is_named(error: int, cgroup: str) -> None:
    seccomp.refuse(seccomp.CLONE3, error)
    f = load().identity
    requests: dict[str, Callable[[], object]] = {
        "set_tid": lambda: start(f, 7, _F.VM, set_tid=[12345]),
        "CLONE_INTO_CGROUP": lambda: start(f, 7, _F.VM, cgroup=cgroup),
        "CLONE_NEWTIME": lambda: start(f, 7, _F.NEWTIME),
        "CLONE_AUTOREAP": lambda: start(f, 7, _F.AUTOREAP),
        "CLONE_NNP": lambda: start(f, 7, _F.NNP),
        "CLONE_EMPTY_MNTNS": lambda: start(f, 7, _F.EMPTY_MNTNS),
    }
    privileged = {"set_tid", "CLONE_INTO_CGROUP", "CLONE_NEWTIME", "CLONE_EMPTY_MNTNS"}
    for lost, request in requests.items():
        if error == errno.EPERM and lost in privileged:
            # EPERM may be about the privilege.
            fails_with(errno.EPERM, "clone3(", request)
        else:
            fails_with(errno.ENOSYS, f"clone has no {lost}", request)
    # Once it is known that clone3 is what is refused, all is named.
    assert run(f, 7, _F.VM).code == 7
    for lost, request in requests.items():
        fails_with(errno.ENOSYS, f"clone has no {lost}", request)


def test_privileged_flags_are_retried_after_enosys_only(error: int) -> None:
    run_function(check_privileged_flags, error)


def check_privileged_flags(error: int) -> None:
    seccomp.refuse(seccomp.CLONE3, error)
    f = load().identity
    if error == errno.EPERM:
        fails_with(errno.EPERM, "clone3(", lambda: start(f, 7, _F.NEWUTS))
        assert not _clone._clone3.missing
    else:
        assert run(f, 7, _F.NEWUTS).code == 7


def test_errors_name_the_call_that_was_made(error: int) -> None:
    run_function(check_errors, error)


def check_errors(error: int) -> None:
    f = load().identity
    seccomp.refuse(seccomp.CLONE3, error)
    run(f, 7)
    if os.getuid() == 0:
        os.setuid(1000)
    fails_with(errno.EPERM, ": clone(flags=", lambda: start(f, 7, _F.NEWUTS))


def test_is_remembered(error: int) -> None:
    run_function(check_is_remembered, error)


def check_is_remembered(error: int) -> None:
    """A second filter ends the process if clone3 is called again."""
    seccomp.refuse(seccomp.CLONE3, error)
    run(load().identity, 7)
    assert _clone._clone3.missing
    seccomp.kill_on(seccomp.CLONE3)
    assert run(load().identity, 7, _F.VM | _F.NEWUTS).code == 7


def test_a_failed_clone_says_nothing_of_clone3(error: int) -> None:
    run_function(check_a_failed_clone, error)


def check_a_failed_clone(error: int) -> None:
    """Both calls are filtered: clone's error is given, and nothing is remembered."""
    f = load().identity
    clone = {"x86_64": 56}.get(os.uname().machine, 220)
    seccomp.refuse(seccomp.CLONE3, error)
    seccomp.refuse(clone, errno.EAGAIN)
    fails_with(errno.EAGAIN, ": clone(flags=", lambda: start(f, 7, _F.VM))
    assert not _clone._clone3.missing


def test_child_that_is_reaped_by_the_kernel(error: int) -> None:
    run_function(check_child_that_is_gone, error)


def check_child_that_is_gone(error: int) -> None:
    """With SIGCHLD ignored the kernel reaps by itself, so that only a pidfd from birth is safe."""
    seccomp.refuse(seccomp.CLONE3, error)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    word = ctypes.c_int()
    child = start(load().identity, 7, _F.VM, ptid=word)
    assert child.pid == word.value
    with suppress(ChildProcessError):  # before Linux 6.15 the status is lost
        assert child.wait().code == 7
    child.close()


def test_audit(error: int) -> None:
    run_function(check_audit, error)


def check_audit(error: int) -> None:
    """One event, however many calls."""
    events: list[tuple[object, ...]] = []

    def hook(name: str, args: tuple[object, ...]) -> None:
        if name == "ramet.clone":
            events.append(args)

    seccomp.refuse(seccomp.CLONE3, error)
    sys.addaudithook(hook)
    run(load().identity, 7, _F.VM)
    assert [args[0] for args in events] == [load().identity]
    assert ramet.probe().clone3 is False
