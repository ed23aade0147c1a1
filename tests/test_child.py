"""Child and ExitStatus."""

from __future__ import annotations

import asyncio
import errno
import faulthandler
import math
import os
import pickle
import resource
import select
import selectors
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import ramet
from ramet import CloneFlags, ExitStatus, _child
from tests.childlib import WALL, Library, Script, load, run, start
from tests.isolated import run_function, run_python
from tests.waiting import (
    KERNEL,
    Background,
    has_child,
    in_fork,
    interrupting,
    running,
    until,
    wait_for_zombie,
)

pytestmark = pytest.mark.usefixtures("lib")

VM, VFORK, PARENT = CloneFlags.VM, CloneFlags.VFORK, CloneFlags.PARENT
memory = pytest.mark.parametrize("flags", [0, VM, VM | VFORK], ids=["copied", "shared", "vfork"])
# PIDFD_INFO_EXIT of PIDFD_GET_INFO.
KERNEL_TELLS = KERNEL >= (6, 15)


# --- the pidfd ----------------------------------------------------------------------------------


@memory
def test_pid(call: str, flags: int) -> None:
    script = Script()
    getpid = script.call("getpid")
    script.call("exit", 0)
    with start(script, flags=flags) as child:
        info = Path(f"/proc/self/fdinfo/{child.pidfd}").read_text()
        assert child.fileno() == child.pidfd
        assert not os.get_inheritable(child.pidfd)
        child.wait()
    assert child.pid == getpid.result
    assert f"\nPid:\t{child.pid}\n" in info


def test_select() -> None:
    with running() as (child, gate):
        assert select.select([child], [], [], 0) == ([], [], [])
        gate.open()
        assert select.select([child], [], []) == ([child], [], [])


def test_selectors() -> None:
    with running() as (child, gate), selectors.DefaultSelector() as selector:
        selector.register(child, selectors.EVENT_READ, "data")
        assert selector.select(0) == []
        gate.open()
        [(key, _)] = selector.select()
        assert (key.fileobj, key.data) == (child, "data")


def test_asyncio() -> None:
    async def main() -> ExitStatus | None:
        with running() as (child, gate):
            ended = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(child, ended.set)
            await asyncio.sleep(0)
            assert not ended.is_set()
            gate.open()
            await ended.wait()
            loop.remove_reader(child)
            return child.poll()

    assert asyncio.run(main()) is not None


# --- poll and wait ------------------------------------------------------------------------------


@memory
def test_poll(call: str, lib: Library, flags: int) -> None:
    with start(lib.identity, 3, flags) as child:
        wait_for_zombie(child.pid)
        status = child.poll()
        assert status == ExitStatus(os.CLD_EXITED, 3)
        assert child.poll() is status
        assert child.wait() is status
        assert child.wait(1) is status
        assert not has_child(child.pid)


def test_poll_of_a_running_child() -> None:
    with running() as (child, _):
        assert child.poll() is None


def test_poll_while_another_thread_waits() -> None:
    with running() as (child, gate):
        waiter = Background(child.wait)
        waiter.until_blocked("waitid")
        assert child.poll() is None
        gate.open()
        until(child.poll)
        assert child.poll() is waiter.result()


@pytest.mark.parametrize("timeout", [0, -1, 0.001, -math.inf])
def test_timeout(timeout: float) -> None:
    with running() as (child, gate):
        with pytest.raises(TimeoutError, match=f"pid {child.pid} still runs") as caught:
            child.wait(timeout)
        assert caught.value.errno == errno.ETIMEDOUT
        gate.open()
        assert child.wait().signal is None


@pytest.mark.parametrize("timeout", [None, 30, 1e300, math.inf])
def test_wait(timeout: float | None, lib: Library) -> None:
    with start(lib.identity, 3) as child:
        assert child.wait(timeout).code == 3


@pytest.mark.parametrize("timeout", [0, -1, 30, None])
def test_wait_for_what_has_ended(timeout: float | None, lib: Library) -> None:
    with start(lib.identity, 3) as child:
        wait_for_zombie(child.pid)
        assert child.wait(timeout).code == 3


def test_bad_timeouts() -> None:
    with running() as (child, _):
        with pytest.raises(ValueError, match="timeout is not a number"):
            child.wait(math.nan)
        with pytest.raises(TypeError, match="timeout must be a number of seconds or None, not str"):
            child.wait("1")  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [None, 0, 30])
def test_the_same_status_again(lib: Library, timeout: float | None) -> None:
    """Also when the pidfd is closed."""
    with start(lib.identity, 3) as child:
        status = child.wait()
        assert child.wait(timeout) is status
    assert child.wait(timeout) is status
    assert child.poll() is status


def test_many_threads_wait() -> None:
    with running() as (child, gate):
        waiters = [Background(child.wait) for _ in range(6)]
        waiters += [Background(lambda: child.wait(30)) for _ in range(2)]
        for waiter in waiters:
            waiter.until_blocked("waitid", "poll")
        gate.open()
        statuses = {id(waiter.result()) for waiter in waiters}
        assert statuses == {id(child.wait())}


# --- how it ended -------------------------------------------------------------------------------


@memory
def test_exit_codes(call: str, lib: Library, flags: int) -> None:
    values = range(256) if flags & VFORK else (0, 1, 127, 128, 255)
    for value in values:
        status = run(lib.identity, value, flags)
        assert (status.code, status.signal, status.returncode) == (value, None, value)


@pytest.mark.parametrize(
    ("value", "code"), [(256, 0), (257, 1), (-1, 255), (1 << 40, 0), (-(1 << 63) + 7, 7)]
)
def test_the_low_8_bits_count(lib: Library, value: int, code: int) -> None:
    assert run(lib.identity, value).code == code


# But for PIPE and XFSZ, which Python ignores.
KILLING = "HUP INT QUIT ILL ABRT BUS FPE KILL USR1 SEGV USR2 ALRM TERM XCPU VTALRM SYS".split()  # noqa: SIM905


@memory
@pytest.mark.parametrize(
    "number",
    [*(signal.Signals[f"SIG{name}"] for name in KILLING), signal.SIGRTMIN, signal.SIGRTMAX],
)
def test_killed(lib: Library, flags: int, number: int) -> None:
    status = run(lib.raise_signal, number, flags)
    assert (status.code, status.signal, status.returncode) == (None, number, -number)


@pytest.mark.skipif(
    not Path("/proc/sys/kernel/core_pattern").read_text().strip("/|\n")
    or Path("/proc/sys/kernel/core_pattern").read_text()[0] in "/|",
    reason="core dumps do not go to the working directory (core_pattern)",
)
@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_CORE)[1] == 0, reason="no core dumps (RLIMIT_CORE)"
)
def test_core_dumped(tmp_path: Path) -> None:
    run_function(check_core_dumped, str(tmp_path))
    assert list(tmp_path.iterdir())


def check_core_dumped(directory: str) -> None:
    lib = load()
    os.chdir(directory)
    Path("/proc/self/coredump_filter").write_text("0")  # no memory
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    assert not run(lib.raise_signal, signal.SIGABRT).core_dumped
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    status = run(lib.raise_signal, signal.SIGABRT)
    assert status.core_dumped
    assert (status.signal, status.returncode) == (signal.SIGABRT, -signal.SIGABRT)
    assert repr(status) == "<ramet.ExitStatus killed by SIGABRT, core dumped>"
    assert not run(lib.raise_signal, signal.SIGTERM).core_dumped


@memory
def test_rusage(lib: Library, flags: int) -> None:
    usage = run(lib.spin, 30_000_000, flags).rusage
    assert isinstance(usage, resource.struct_rusage)
    assert usage.ru_utime > 0
    assert usage.ru_maxrss > 0
    assert usage.ru_utime < 60, "not a sum of garbage"


@pytest.mark.parametrize("number", [0, signal.SIGCHLD, signal.SIGUSR1, signal.SIGRTMIN])
@memory
def test_exit_signal(call: str, lib: Library, number: int, flags: int) -> None:
    seen: list[int] = []
    numbers = (signal.SIGCHLD, signal.SIGUSR1, signal.SIGRTMIN)
    before = [signal.signal(n, lambda n, _: seen.append(n)) for n in numbers]
    try:
        with start(lib.identity, 3, flags, exit_signal=number) as child:
            assert child.wait().code == 3
        until(lambda: seen or not number)
        assert seen == ([number] if number else [])
    finally:
        for n, handler in zip(numbers, before, strict=True):
            signal.signal(n, handler)


# --- signals for the one who waits --------------------------------------------------------------


@pytest.fixture
def _usr1() -> Iterator[None]:
    yield
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


timeouts = pytest.mark.parametrize(
    ("timeout", "syscall"), [(None, "waitid"), (30, "poll")], ids=["forever", "timeout"]
)


@timeouts
@pytest.mark.usefixtures("_usr1")
def test_waiting_goes_on_after_a_handler(timeout: float | None, syscall: str) -> None:
    with running() as (child, gate), interrupting(syscall, gate.open) as seen:
        signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
        assert child.wait(timeout).signal is None
        assert seen == [signal.SIGUSR1] * 3


class HandlerError(Exception):
    pass


@timeouts
@pytest.mark.usefixtures("_usr1")
def test_a_handler_that_raises_ends_the_wait(timeout: float | None, syscall: str) -> None:
    with running() as (child, gate):
        with interrupting(syscall, lambda: None, 1) as seen:

            def handler(number: int, frame: FrameType | None) -> None:
                seen.append(number)
                raise HandlerError

            signal.signal(signal.SIGUSR1, handler)
            with pytest.raises(HandlerError):
                child.wait(timeout)
        assert child.poll() is None
        gate.open()
        assert child.wait().signal is None


@pytest.mark.parametrize("again", ["poll", "wait"])
def test_a_handler_may_wait_too(again: str) -> None:
    run_function(check_a_handler_may_wait_too, again)


def check_a_handler_may_wait_too(again: str) -> None:
    """As the handler of an alarm that ends a child, while the main thread waits for it."""
    faulthandler.dump_traceback_later(10, exit=True)
    with running() as (child, _), interrupting("waitid", lambda: None, 1) as seen:

        def handler(number: int, frame: FrameType | None) -> None:
            child.kill()
            wait_for_zombie(child.pid)
            if again == "wait":
                child.wait()
            else:
                child.poll()
            seen.append(number)

        signal.signal(signal.SIGUSR1, handler)
        assert child.wait().signal == signal.SIGKILL
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("timeout", [None, 30, "poll"])
def test_an_exception_anywhere_loses_no_status(lib: Library, timeout: float | str | None) -> None:
    """A signal's handler may run, and raise, in any Python code: try each line of ours."""
    events = 0

    def trace(frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        nonlocal events
        if Path(frame.f_code.co_filename).parent.name != "ramet":
            return None
        events += event in {"call", "line"}
        if events == strike:
            sys.settrace(None)
            raise HandlerError
        return trace

    before = sys.gettrace()
    for strike in range(1, 1000):
        with start(lib.identity, 3, VM) as child:
            wait_for_zombie(child.pid)
            events = 0
            sys.settrace(trace)
            with suppress(HandlerError):
                child.poll() if isinstance(timeout, str) else child.wait(timeout)
            sys.settrace(before)
            status = child.wait()
            assert status.code == 3
            assert status.rusage is not None
        if events < strike:
            break
    assert 5 < strike < 999


# --- a status that goes to others ---------------------------------------------------------------

WAYS: dict[str, Callable[[ramet.Child], ExitStatus]] = {
    "wait": lambda child: child.wait(),
    "timeout": lambda child: child.wait(30),
    "poll": lambda child: child.poll() or child.wait(),
}
ways = pytest.mark.parametrize("way", WAYS)


def told_or_lost(child: ramet.Child, way: str, status: ExitStatus) -> None:
    if KERNEL_TELLS:
        found = WAYS[way](child)
        assert found == status
        assert found.rusage is None
        assert child.wait() is found
    else:
        with pytest.raises(ChildProcessError, match="not to be had: it went to another wait"):
            WAYS[way](child)


@pytest.fixture
def _ignore_sigchld() -> Iterator[None]:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


@ways
@memory
@pytest.mark.usefixtures("_ignore_sigchld")
def test_sigchld_is_ignored(way: str, flags: int, lib: Library) -> None:
    with start(lib.identity, 3, flags) as child:
        until(lambda: not has_child(child.pid))
        told_or_lost(child, way, ExitStatus(os.CLD_EXITED, 3))


@ways
@memory
def test_reaped_by_others(way: str, flags: int, lib: Library) -> None:
    with start(lib.raise_signal, signal.SIGUSR2, flags) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | WALL)
        told_or_lost(child, way, ExitStatus(os.CLD_KILLED, signal.SIGUSR2))


def test_poll_never_blocks(lib: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the kernel will not tell, nor where it does not yet."""
    with closing(start(lib.identity, 3)) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | WALL)
        for error in (errno.ENOTTY, errno.EINVAL, errno.ESRCH):
            monkeypatch.setattr(ramet.Child, "_ioctl", lambda *_, error=error: error)
            with pytest.raises(ChildProcessError):
                child.poll()
        monkeypatch.setattr(_child, "exit_info", lambda _: None)
        assert child.poll() is None
        with pytest.raises(ChildProcessError):  # a second is long enough
            child.wait()


def test_clone_parent() -> None:
    run_function(check_clone_parent)


def check_clone_parent() -> None:
    """The starter is a fork, so that this process is the parent of what it starts."""
    hand_over, pid_of = os.pipe()
    reaped, reap = os.pipe()

    def starter() -> None:
        for flags in (0, VM):
            script = Script()
            gate = script.gate()
            script.call("exit", 3)
            child = start(script, flags=flags | PARENT)
            assert child.poll() is None
            with pytest.raises(TimeoutError):
                child.wait(0)
            gate.open()
            select.select([child], [], [])
            os.write(pid_of, child.pid.to_bytes(4, "little"))
            os.read(reaped, 1)
            if KERNEL_TELLS:
                assert child.wait().code == 3
            else:
                with pytest.raises(ChildProcessError, match="CLONE_PARENT"):
                    child.wait()
            child.close()

    def parent() -> None:
        for _ in range(2):
            pid = int.from_bytes(os.read(hand_over, 4), "little")
            os.waitid(os.P_PID, pid, os.WEXITED | WALL)
            os.write(reap, b"1")

    helper = Background(parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside a thread
        in_fork(starter)
    helper.result()


def test_clone_parent_before_the_parent_reaps() -> None:
    run_function(check_clone_parent_before_the_parent_reaps)


def check_clone_parent_before_the_parent_reaps() -> None:
    def starter() -> None:
        with start(load().identity, 3, PARENT) as child:
            select.select([child], [], [])
            for ask in (child.poll, child.wait, lambda: child.wait(30)):
                with pytest.raises(ChildProcessError, match="parent that it has by CLONE_PARENT"):
                    ask()
            child.close()

    in_fork(starter)
    os.waitpid(-1, WALL)


# --- signals for the child ----------------------------------------------------------------------


@memory
@pytest.mark.parametrize(
    ("send", "number"),
    [
        (lambda child: child.send_signal(signal.SIGUSR1), signal.SIGUSR1),
        (lambda child: child.terminate(), signal.SIGTERM),
        (lambda child: child.kill(), signal.SIGKILL),
    ],
    ids=["send_signal", "terminate", "kill"],
)
def test_send_signal(send: Callable[[ramet.Child], None], number: int, flags: int) -> None:
    with running(flags & ~VFORK) as (child, _):
        send(child)
        wait_for_zombie(child.pid)
        send(child)  # it has ended
        assert child.wait().signal == number
        send(child)  # and is reaped
    send(child)  # and closed


def test_send_signal_when_closed() -> None:
    with running() as (child, _):
        child.close()
        with pytest.raises(ValueError, match="closed"):
            child.kill()


@pytest.mark.parametrize("number", [65, -1, 1000, 2**32 + signal.SIGKILL, -(2**63)])
def test_send_no_signal(number: int) -> None:
    with running() as (child, _):
        with pytest.raises(OSError, match="Invalid argument") as caught:
            child.send_signal(number)
        assert caught.value.errno == errno.EINVAL
        child.send_signal(0)
        assert child.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_send_signal_without_permission() -> None:
    run_function(check_send_signal_without_permission)


def check_send_signal_without_permission() -> None:
    with running() as (child, gate):
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(PermissionError):
            child.kill()
        gate.open()
        assert child.wait().signal is None


# --- the end of a handle ------------------------------------------------------------------------


def test_context_manager(lib: Library) -> None:
    with start(lib.identity, 3) as child:
        pidfd = child.pidfd
    assert not has_child(child.pid)
    assert child.wait().code == 3
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pidfd)
    for use in (child.fileno, lambda: child.pidfd):
        with pytest.raises(ValueError, match="is closed"):
            use()


def test_context_manager_with_an_exception(lib: Library) -> None:
    with pytest.raises(KeyError), start(lib.identity, 3) as child:
        raise KeyError
    assert child.wait().code == 3


def test_closed_inside_the_block(lib: Library) -> None:
    with start(lib.identity, 3) as child:
        child.wait()
        child.close()
    assert child.wait().code == 3


def test_closed_before_it_was_waited_for() -> None:
    with running() as (child, _):
        child.close()
        child.close()
        for use in (child.wait, lambda: child.wait(1), child.poll, child.fileno):
            with pytest.raises(ValueError, match="closed"):
                use()


def dropped(child: ramet.Child, end: Callable[[ramet.Child], object]) -> list[str]:
    """Bring a handle to an end, drop it, and say what warnings that gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        end(child)
        del child
    return [str(warning.message) for warning in caught]


@memory
@pytest.mark.parametrize("end", ["wait", "poll", "close", "closed twice", "reaped by others"])
def test_no_warning(flags: int, end: str, lib: Library) -> None:
    def come_to(child: ramet.Child) -> None:
        match end:
            case "close":
                child.close()
            case "closed twice":
                child.close()
                child.close()
            case "wait":
                child.wait()
            case "poll":
                until(child.poll)
            case _:
                os.waitid(os.P_PID, child.pid, os.WEXITED | WALL)
                with suppress(ChildProcessError):
                    child.wait()

    assert dropped(start(lib.identity, 3, flags), come_to) == []


@memory
def test_warning(flags: int, lib: Library) -> None:
    child = start(lib.identity, 3, flags)
    said = f"<ramet.Child pid={child.pid}> was not waited for"
    with pytest.warns(ResourceWarning) as caught:
        del child
    assert [str(warning.message) for warning in caught] == [said]
    assert caught[0].source is not None


# --- in a fork ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, int(VM)], ids=["copied", "shared"])
def test_fork(flags: int) -> None:
    run_function(check_fork, flags)


def check_fork(flags: int) -> None:
    lib = load()
    ended = start(lib.identity, 3, flags)
    ended.wait()
    handles: list[ramet.Child] = []

    def fork() -> None:
        child = handles.pop()
        for ask in (child.wait, lambda: child.wait(30), child.poll):
            with pytest.raises(ChildProcessError, match="forked from"):
                ask()
        for ask in (ended.wait, lambda: ended.wait(30), ended.poll):
            status = ask()
            assert status is not None
            assert status.code == 3
        assert run(lib.identity, 4, flags).code == 4

    with running(flags) as (child, gate):
        handles.append(child)
        in_fork(fork)
        assert child.poll() is None
        gate.open()
        assert child.wait().signal is None
    ended.close()


def test_fork_while_another_thread_waits() -> None:
    run_function(check_fork_while_another_thread_waits)


def check_fork_while_another_thread_waits() -> None:
    """What that thread holds stays held in the fork."""
    warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside a thread
    with running() as (child, gate):
        waiter = Background(child.wait)
        waiter.until_blocked("waitid")

        def fork() -> None:
            faulthandler.dump_traceback_later(10, exit=True)
            gate.open()
            select.select([child], [], [])
            for ask in (child.poll, child.wait, lambda: child.wait(30)):
                with pytest.raises(ChildProcessError, match="forked from"):
                    ask()
            faulthandler.cancel_dump_traceback_later()

        in_fork(fork)
        assert waiter.result() is child.wait()


def test_closed_in_a_fork_while_another_thread_waits() -> None:
    with running() as (child, gate):
        waiter = Background(child.wait)
        waiter.until_blocked("waitid")
        pidfd = child.pidfd

        def close() -> None:
            child.close()
            assert not os.path.exists(f"/proc/self/fd/{pidfd}")

        in_fork(close)
        gate.open()
        waiter.result()


SAME_PID = """if True:
    import os, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # there is another thread on purpose
    from ramet import CloneFlags
    from tests.childlib import Script, start, syscall
    from tests.waiting import Background
    assert os.getpid() == 1
    script = Script()
    gate = script.gate()
    child = start(script)
    waiter = Background(child.wait)
    waiter.until_blocked("waitid")
    syscall("unshare", CloneFlags.NEWPID)
    pid = os.fork()
    if pid == 0:
        assert os.getpid() == 1
        try:
            child.poll()
        except ChildProcessError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    gate.open()
    waiter.result()
"""


def test_a_fork_with_the_same_pid() -> None:
    """Which process it is does not hang on the pid: both are pid 1 of their namespaces."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("needs unshare(1), and the right to make user and pid namespaces")
    run_python(SAME_PID, before=unshare)


def test_dropped_in_a_fork() -> None:
    run_function(check_dropped_in_a_fork)


def check_dropped_in_a_fork() -> None:
    """The fork closes its own descriptor, and nothing else."""
    script = Script()
    gate = script.gate()
    handles = [start(script, flags=VM)]
    pid, pidfd = handles[0].pid, handles[0].pidfd

    def fork() -> None:
        assert dropped(handles.pop(), lambda _: None) == []
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(pidfd)
        assert Path(f"/proc/{pid}").exists()

    in_fork(fork)
    assert has_child(pid)
    os.fstat(pidfd)
    gate.open()
    assert handles.pop().wait().signal is None


# --- ExitStatus and repr ------------------------------------------------------------------------

STATUSES = {
    "exited with 0": ExitStatus(os.CLD_EXITED, 0),
    "exited with 9": ExitStatus(os.CLD_EXITED, 9),
    "killed by SIGKILL": ExitStatus(os.CLD_KILLED, signal.SIGKILL),
    "killed by SIGSEGV, core dumped": ExitStatus(os.CLD_DUMPED, signal.SIGSEGV),
    "killed by SIGSEGV": ExitStatus(os.CLD_KILLED, signal.SIGSEGV),
    "killed by SIGRTMIN": ExitStatus(os.CLD_KILLED, signal.SIGRTMIN),
    "killed by signal 40": ExitStatus(os.CLD_KILLED, 40),
}


@pytest.mark.parametrize("words", STATUSES)
def test_status_repr(words: str) -> None:
    assert repr(STATUSES[words]) == f"<ramet.ExitStatus {words}>"


def test_status_equality() -> None:
    assert len(set(STATUSES.values())) == len(STATUSES)
    for a, first in enumerate(STATUSES.values()):
        for b, second in enumerate(STATUSES.values()):
            assert (first == second) == (a == b)
    assert ExitStatus(os.CLD_EXITED, 0) != 0


def test_status_pickle(lib: Library) -> None:
    for status in (*STATUSES.values(), run(lib.spin, 1000), run(lib.raise_signal, 9)):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            copy = pickle.loads(pickle.dumps(status, protocol))  # noqa: S301
            assert copy == status
            assert hash(copy) == hash(status)
            assert copy.rusage == status.rusage


def test_status_does_not_compare_what_was_used(lib: Library) -> None:
    assert run(lib.spin, 10**6) == run(lib.identity, 0)


@pytest.mark.parametrize("name", ["code", "signal", "returncode", "core_dumped", "rusage", "x"])
def test_status_cannot_be_changed(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(ExitStatus(os.CLD_EXITED, 0), name, 1)


def test_child_repr(lib: Library) -> None:
    with running() as (child, _):
        assert repr(child) == f"<ramet.Child pid={child.pid} not waited for yet>"
        child.kill()
        child.wait()
        assert repr(child) == f"<ramet.Child pid={child.pid} killed by SIGKILL>"
    closed = start(lib.identity)
    closed.close()
    assert repr(closed) == f"<ramet.Child pid={closed.pid} closed>"
