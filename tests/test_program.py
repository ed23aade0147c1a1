"""Program: steps, how they are compiled, shown and run, and what is said when one fails."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ramet import ChildError, CloneFlags, Program, _native, _program
from ramet._syscalls import NUMBERS
from tests.isolated import run_function
from tests.waiting import KERNEL, Background, sweep, until

EHWPOISON = 133  # the highest there is (asm-generic/errno.h)


def exits_with(program: Program, **options: Any) -> int | None:
    with program.start(**options) as child:
        return child.wait().code


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 20])
def test_results(timeout: float | None) -> None:
    program = Program()
    pid = program.syscall("getpid")
    program.syscall("exit_group", pid)
    with program.start(timeout=timeout) as child:
        assert child.wait().code == child.pid & 0xFF


def test_pointers_to_results(tmp_path: Path) -> None:
    program = Program()
    pid = program.syscall("getpid")
    fd = program.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY)
    program.syscall("write", fd, pid.pointer, 8, expect=8)
    with program.start() as child:
        assert child.wait().code == 0
        assert (tmp_path / "out").read_bytes() == child.pid.to_bytes(8, "little")


def test_buffers_are_shared() -> None:
    buffer = bytearray(65)
    program = Program()
    program.syscall("uname", ctypes.create_string_buffer(400))
    program.syscall("getcwd", buffer, len(buffer) - 1)
    assert exits_with(program) == 0
    assert bytes(buffer).rstrip(b"\0") == os.fsencode(os.getcwd())


@pytest.mark.parametrize("name", ["text", b"bytes", Path("path"), "h\xe4\u20ac", b"\xff\xfe"])
def test_strings(tmp_path: Path, name: str | bytes | Path) -> None:
    program = Program()
    fd = program.syscall("openat", -100, str(tmp_path), os.O_PATH)
    program.syscall("mkdirat", fd, name, 0o755)
    assert exits_with(program) == 0
    assert os.listdir(os.fsencode(tmp_path)) == [os.fsencode(name)]


def test_arrays_of_strings() -> None:
    program = Program()
    program.syscall(
        "execve", "/bin/sh", ["sh", b"-c", 'test "$1$A" = xy', "-", Path("x")], ("A=y",)
    )
    assert exits_with(program) == 0


def test_numbers() -> None:
    program = Program()
    number = NUMBERS["exit_group"]
    program.syscall(number, 5)
    assert str(program) == "1  exit_group(5)"
    assert exits_with(program) == 5


@pytest.mark.parametrize(
    ("name", "args", "error", "said"),
    [
        ("no_such_call", (), ValueError, "no system call 'no_such_call'"),
        (-1, (), ValueError, "no system call -1"),
        (1 << 31, (), ValueError, "no system call 2147483648"),
        (1.5, (), TypeError, "float"),
        ("getpid", range(7), TypeError, "at most 6 arguments, getpid got 7"),
        ("chdir", ("a\0b",), ValueError, "embedded null byte"),
        ("chdir", (["a\0b"],), ValueError, "embedded null byte"),
        ("chdir", ([1],), TypeError, "expected str, bytes or os.PathLike object, not int"),
        ("chdir", (1.5,), TypeError, "can't be a float"),
        ("chdir", (memoryview(b"read-only"),), TypeError, "can't be a memoryview"),
        ("chdir", (1 << 64,), ValueError, "at most 64 bits"),
        ("chdir", (-(1 << 63) - 1,), ValueError, "at most 64 bits"),
        *(
            (name, (), ValueError, f"{name} must not be part of a program: it returns twice")
            for name in ("clone", "clone3")
        ),
        ("munmap", (0, 0), ValueError, "munmap must not be .* shares this process's memory"),
        ("set_tid_address", (0,), ValueError, "the calling thread"),
        ("prctl", (4, 0), ValueError, r"prctl\(4\) must not be part of a program"),
        ("prctl", ((1 << 32) + 4, 0), ValueError, r"prctl\(4294967300\) must not be part"),
        ("prctl", (b"4", 0), TypeError, "known beforehand"),
        ("mlockall", (1,), ValueError, "mlockall must not be part"),
        (1 << 30, (), ValueError, "no system call 1073741824"),
    ],
)
def test_bad_steps(name: Any, args: Any, error: type[Exception], said: str) -> None:
    program = Program()
    program.syscall("getpid")
    with pytest.raises(error, match=said):
        program.syscall(name, *args)
    assert len(program) == 1
    assert exits_with(program) == 0


def test_refused_by_number() -> None:
    with pytest.raises(ValueError, match="munmap must not be part"):
        Program().syscall(NUMBERS["munmap"])


@pytest.mark.parametrize("tolerate", [[0], [-1], [192], ["ENOENT"], [1.5]])
def test_bad_errnos(tolerate: list[Any]) -> None:
    with pytest.raises(ValueError, match="tolerate must have errnos"):
        Program().syscall("getpid", tolerate=tolerate)


def test_results_of_others() -> None:
    one, other = Program(), Program()
    result = one.syscall("getpid")
    with pytest.raises(ValueError, match="#1 is a result of another program"):
        other.syscall("exit_group", result)
    with pytest.raises(ValueError, match="#1 is a result of another program"):
        other.syscall("exit_group", result.pointer)


def test_length() -> None:
    program = Program()
    for _ in range(_native.most_steps):
        program.syscall("getpid")
    with pytest.raises(ValueError, match="at most 65536 steps"):
        program.syscall("getpid")
    assert exits_with(program) == 0


def test_many_results() -> None:
    program = Program()
    results = [program.syscall("getpid") for _ in range(_native.most_results)]
    for result in results[1:]:
        program.syscall("getpgid", result)
        program.syscall("getpgid", result)  # the same one again
    with pytest.raises(ValueError, match="at most 255 results can be referred to"):
        program.syscall("getpgid", results[0])
    program.exit(results[-1])
    with program.start() as child:
        assert child.wait().code == child.pid & 0xFF


def test_places_of_closed_descriptors() -> None:
    program = Program()
    early, pid = program.syscall("getppid"), program.syscall("getpid")
    for _ in range(_native.most_results):
        program._close(program.open("/dev/null"))
        copy = program.copy()
    for made in (program, copy):
        made.syscall("getpgid", early)  # made before: it has a place of its own
        made.exit(pid)
        with made.start() as child:
            assert child.wait().code == child.pid & 0xFF


# --- copies -------------------------------------------------------------------------------------


def test_copy() -> None:
    base = Program()
    pid = base.syscall("getpid")
    one, other = base.copy(), base.copy()
    one.syscall("exit_group", pid)
    other.syscall("exit_group", 7)
    late = base.syscall("exit_group", 8)
    with one.start() as child:
        assert child.wait().code == child.pid & 0xFF
    assert (exits_with(other), exits_with(base)) == (7, 8)
    with pytest.raises(ValueError, match="result of another program"):
        other.syscall("exit_group", late)


def test_steps_after_a_start() -> None:
    program = Program()
    program.umask(0o22)
    assert exits_with(program) == 0
    program.exit(4)
    assert exits_with(program) == 4


def test_many_threads_start_one_program(tmp_path: Path) -> None:
    """Results are each child's own."""
    program = Program()
    pid = program.syscall("getpid")
    program.syscall("sched_yield")
    program.syscall("exit_group", pid)

    def work() -> bool:
        return all(
            child.wait().code == child.pid & 0xFF for child in (program.start() for _ in range(100))
        )

    workers = [Background(work) for _ in range(8)]
    assert all(worker.result() for worker in workers)


# --- failure ------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 20])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_failure(place: int, timeout: float | None) -> None:
    program = Program()
    for i in range(3):
        program.chdir("/missing" if i == place else "/")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError) as caught:
        program.start(timeout=timeout)
    error = caught.value
    assert isinstance(error, ChildError)
    assert (error.errno, error.step, error.steps) == (errno.ENOENT, place + 1, 3)
    assert error.call == 'chdir("/missing")'
    assert error.filename == "/missing"
    assert error.strerror == os.strerror(errno.ENOENT)
    assert str(error) == (
        f'chdir("/missing") failed: ENOENT, No such file or directory (step {place + 1} of 3)'
    )
    assert error.status is None
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, 0)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.EACCES, PermissionError),
        (errno.EPERM, PermissionError),
        (errno.ENOTDIR, NotADirectoryError),
        (errno.EISDIR, IsADirectoryError),
        (errno.EEXIST, FileExistsError),
        (errno.ESRCH, ProcessLookupError),
        (errno.EAGAIN, BlockingIOError),
        (errno.ENOEXEC, ChildError),
    ],
)
def test_kinds_of_errors(number: int, kind: type[OSError]) -> None:
    from ramet._child_error import failed_step

    error = failed_step(-number, "call()", 1, 2, filename="name")
    assert isinstance(error, kind)
    assert isinstance(error, ChildError)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert (again.errno, again.filename) == (number, "name")


def test_tolerated() -> None:
    program = Program()
    result = program.syscall("chdir", "/missing", tolerate=[errno.ENOENT, EHWPOISON])
    negative = program.syscall("dup", result, tolerate=[errno.EBADF])
    program.exit(negative)
    assert exits_with(program) == -errno.EBADF & 0xFF
    program = Program()
    program.syscall("chdir", "/missing", tolerate=[errno.EACCES])
    with pytest.raises(FileNotFoundError):
        program.start()


def test_expected() -> None:
    program = Program()
    program.syscall("umask", 0o22)
    program.syscall("umask", 0o77, expect=0o22)
    assert exits_with(program) == 0
    program.syscall("umask", 0o22, expect=0o70)
    with pytest.raises(ChildError) as caught:
        program.start()
    assert str(caught.value) == "umask(18) returned 63, not 56 (step 3 of 3)"
    assert caught.value.errno == errno.EPROTO


def test_exec_in_turn(tmp_path: Path) -> None:
    """As execvp: what is missing does not count if something else was found wrong."""
    refused = tmp_path / "refused"
    refused.write_text("")
    program = Program()
    program.execvp(["/missing/a", "/bin/sh", "/missing/b"], ["sh", "-c", "exit 6"])
    assert exits_with(program) == 6
    program = Program()
    program.execvp(["/missing/a", refused, "/missing/b"], ["x"])
    with pytest.raises(PermissionError) as caught:
        program.start()
    assert (caught.value.step, caught.value.filename) == (2, str(refused))  # type: ignore[attr-defined]
    program = Program()
    program.execvp(["/missing/a", "/missing/b"], ["x"])
    with pytest.raises(FileNotFoundError) as missing:
        program.start()
    assert missing.value.filename == "/missing/b"


@pytest.mark.parametrize("timeout", [None, 20])
def test_killed_before_exec(timeout: float | None) -> None:
    program = Program()
    pid = program.syscall("getpid")
    program.syscall("kill", pid, signal.SIGKILL)
    program.execve("/bin/true", ["true"])
    for _ in range(20):
        with pytest.raises(ChildError) as caught:
            program.start(timeout=timeout)
        error = caught.value
        assert str(error) == (
            f"kill(#1, {int(signal.SIGKILL)}) was not finished: the child was killed by SIGKILL "
            "(step 2 of 3)"
        )
        assert error.errno == errno.ECANCELED
        assert error.status is not None
        assert error.status.signal == signal.SIGKILL


@pytest.mark.skipif(KERNEL < (6, 15), reason="before Linux 6.15 nobody tells how it ended")
def test_killed_before_exec_and_nobody_reaps() -> None:
    run_function(check_killed_and_nobody_reaps)


def check_killed_and_nobody_reaps() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for session in (False, True):
        program = Program()
        if session:
            program.setsid()
        program.syscall("kill", program.syscall("getpid"), signal.SIGTERM)  # comes before exec
        program.execve("/bin/true", ["true"])
        for timeout in (None, 20):
            with pytest.raises(ChildError, match="killed by SIGTERM"):
                program.start(timeout=timeout)
        program = Program()
        program.chdir("/missing")
        with pytest.raises(FileNotFoundError):
            program.start()


@pytest.mark.parametrize("session", [False, True])
def test_killed_after_exec(session: bool) -> None:
    """That is no failure of the start."""
    program = Program()
    if session:
        program.setsid()
    program.execve("/bin/sh", ["sh", "-c", "kill -9 $$"])
    for _ in range(20):
        with program.start() as child:
            assert child.wait().signal == signal.SIGKILL


def test_a_signal_that_was_blocked_arrives_before_exec() -> None:
    """It kills the child when the mask is restored, which is not taken for success."""
    program = Program()
    pid = program.syscall("getpid")
    program.syscall("kill", pid, signal.SIGTERM)
    program.syscall("getpid")
    program.execve("/bin/true", ["true"])
    with pytest.raises(ChildError, match="killed by SIGTERM") as caught:
        program.start()
    assert caught.value.step == 4


def test_timeout(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    program = Program()
    program.umask(0)
    program.open(fifo)  # waits for a writer
    program.execve("/bin/true", ["true"])
    start = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        program.start(timeout=0.05)
    assert time.monotonic() - start < 10
    assert caught.value.errno == errno.ETIMEDOUT
    assert 'fifo", O_RDONLY|O_CLOEXEC, 0) has not ended after 0.05 seconds (step 2 of 3)' in str(
        caught.value
    )
    sweep()


def test_the_gil_is_free_during_a_start(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    program = Program()
    program.open(fifo)
    starter = Background(lambda: exits_with(program))
    with open(fifo, "wb"):  # both wait for each other
        assert starter.result() == 0


def test_a_handler_that_raises_ends_a_bounded_start(tmp_path: Path) -> None:
    run_function(check_handler_that_raises, str(tmp_path))


def check_handler_that_raises(directory: str) -> None:
    fifo = os.path.join(directory, "fifo")
    os.mkfifo(fifo)
    program = Program()
    program.open(fifo)

    def handler(*_: object) -> None:
        raise InterruptedError

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    with pytest.raises(InterruptedError):
        program.start(timeout=20)
    sweep()
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)


# --- the child ----------------------------------------------------------------------------------


def test_signals_are_blocked_until_exec() -> None:
    program = Program()
    mask = bytearray(8)
    program.syscall("rt_sigprocmask", 0, None, mask, 8)
    program.execve(
        "/bin/sh", ["sh", "-c", "grep SigBlk /proc/self/status | grep -q 0000000000000400"]
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGSEGV])
    try:
        assert exits_with(program) == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert int.from_bytes(mask, "little") | 1 << 8 | 1 << 18 == (1 << 64) - 1  # KILL, STOP


@pytest.mark.parametrize(
    "flag",
    ["THREAD", "SIGHAND", "SETTLS", "CHILD_SETTID", "CHILD_CLEARTID"],
)
def test_flags_that_are_not_for_programs(flag: str) -> None:
    with pytest.raises(ValueError, match="THREAD, SIGHAND, SETTLS, CHILD_SETTID"):
        Program().start(flags=CloneFlags[flag])


def test_exit_signal_and_cgroup(cgroup: Path) -> None:
    program = Program()
    program.execve("/bin/sh", ["sh", "-c", f"grep -q {cgroup.name} /proc/self/cgroup"])
    assert exits_with(program, cgroup=cgroup, exit_signal=0) == 0


def test_fallback(call: str) -> None:
    """By clone(2) handlers are reset in the child, before the first step."""
    program = Program()
    program.execve("/bin/sh", ["sh", "-c", "exit 3"])
    assert exits_with(program) == 3
    program = Program()
    program.chdir("/missing")
    with pytest.raises(FileNotFoundError):
        program.start()


# --- credentials in shared memory ----------------------------------------------------------------

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to change ids")
PR_GET_DUMPABLE = 3
NOBODY = 65534


def dumpable() -> int:
    return int(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0))


@needs_root
@pytest.mark.parametrize("timeout", [None, 20])
def test_dropped_credentials_leave_the_parent_as_it_is(timeout: float | None) -> None:
    assert dumpable() == 1
    program = Program()
    program.setresgid(NOBODY)
    program.setresuid(NOBODY)
    program.execve("/bin/sh", ["sh", "-c", f"test $(id -u) = {NOBODY}"])
    assert exits_with(program, timeout=timeout) == 0
    assert dumpable() == 1
    assert os.getresuid() == (0, 0, 0)
    program = Program()
    program.setresuid(NOBODY)
    program.chdir("/missing")
    with pytest.raises(FileNotFoundError):
        program.start(timeout=timeout)
    assert dumpable() == 1


@needs_root
def test_nobody_reads_our_memory_through_the_child(tmp_path: Path) -> None:
    """While a child has other ids and our memory, others with those ids may not look into it.

    That holds until the last of several such children is done.
    """
    tmp_path.chmod(0o755)
    fifos = [tmp_path / name for name in "ab"]
    starters = []
    for fifo in fifos:
        os.mkfifo(fifo)
        fifo.chmod(0o644)
        program = Program()
        directory = program.open(tmp_path, os.O_PATH)
        program.setresuid(NOBODY)
        program.open(fifo.name, dir_fd=directory)  # waits for a writer
        starters.append(Background(partial(exits_with, program)))
    until(lambda: dumpable() != 1)
    for fifo, starter in zip(fifos, starters, strict=True):
        assert dumpable() != 1
        with fifo.open("wb"):
            assert starter.result() == 0
    assert dumpable() == 1


@needs_root
def test_privileges_that_are_dropped_meanwhile(tmp_path: Path) -> None:
    run_function(check_privileges_dropped_meanwhile, str(tmp_path))


def check_privileges_dropped_meanwhile(directory: str) -> None:
    """That has made this process undumpable, and it stays so."""
    fifo = Path(directory) / "fifo"
    os.mkfifo(fifo)
    program = Program()
    where = program.open(directory, os.O_PATH)
    program.setresuid(NOBODY)
    program.syscall("openat", where, "fifo", os.O_RDONLY, tolerate=[errno.EACCES])
    program.syscall("pause")
    starter = Background(lambda: exits_with(program, timeout=0.5))
    until(lambda: dumpable() != 1)
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    with pytest.raises(TimeoutError):
        starter.result()
    sweep()
    assert dumpable() != 1


# --- rendering ----------------------------------------------------------------------------------


def test_str() -> None:
    program = Program()
    fd = program.open("/dev/null", os.O_RDWR)
    program.dup2(fd, 0)
    program.mount(None, "/", None, 16384 | 1 << 18)
    program.execve("/bin/true", ["true", 'a"b\n'], {"SECRET": "x"})
    assert str(program).splitlines() == [
        '1  openat(AT_FDCWD, "/dev/null", O_RDWR|O_CLOEXEC, 0)',
        "2  dup3(#1, 0, 0)",
        '3  mount(NULL, "/", NULL, MS_REC|MS_PRIVATE, NULL)',
        '4  execve("/bin/true", ["true", "a\\"b\\n"], /* environment */)',
    ]
    assert repr(program) == "<ramet.Program of 4 steps>"
    assert len(program) == 4


@pytest.mark.parametrize(
    ("arg", "shown"),
    [
        (None, "NULL"),
        (0, "0"),
        (-1, "-1"),
        (1 << 16, "0x10000"),
        ("x" * 65, '"' + "x" * 64 + '"...'),
        (b"\x00\x01", "<2 bytes>"),
        (bytearray(5), "<5 bytes>"),
        (["a"] * 9, "[" + '"a", ' * 8 + "...]"),
        (Path("/p"), '"/p"'),
    ],
)
def test_render(arg: object, shown: str) -> None:
    assert _program.render(arg) == shown


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_many_starts(timeout: float | None) -> None:
    program = Program()
    program.execve("/bin/true", ["true"])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        with program.start(timeout=timeout) as child:
            assert child.wait().code == 0
    assert len(os.listdir("/proc/self/fd")) == before
