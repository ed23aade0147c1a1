"""ramet-init: the first process of a pid namespace."""

from __future__ import annotations

import errno
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

import ramet
from ramet import CloneFlags
from tests.native.toolchain import require
from tests.waiting import until

INIT = Path(ramet.__file__).parent / "lib" / "ramet-init"
ENDED, FAILED, REAPED = 1, 2, 3
RECORD = struct.Struct("=21q")  # src/native/init.h
SHELL, PYTHON = ["/bin/sh", "-c"], [sys.executable, "-c"]


class Record(NamedTuple):
    kind: int
    value: int
    pid: int
    rusage: Sequence[int]  # struct rusage: getrusage(2)


class Run:
    """An init in namespaces of its own."""

    def __init__(
        self, args: Sequence[str], *, out: int = 1, env: Mapping[str, str] | None = None,
        parent: int | None = None, fds: Mapping[int, int] | None = None, whose: str = "0",
    ) -> None:  # fmt: skip
        reader, writer = os.pipe()
        pidfd = os.pidfd_open(os.getpid()) if parent is None else os.dup(parent)
        try:
            self.child = ramet.spawn(
                ["init", "20", "21", whose, *args],
                executable=INIT,
                fds={1: out, 20: writer, 21: pidfd, **(fds or {})},
                flags=CloneFlags.NEWUSER | CloneFlags.NEWPID,
                env=env,
            )
        finally:
            os.close(writer)
            os.close(pidfd)
        self._reader = reader

    def records(self) -> list[Record]:
        """All that it tells; it has ended then."""
        with open(self._reader, "rb") as file:
            data = file.read()
        self.child.wait()
        assert len(data) % RECORD.size == 0
        return [Record(r[0], r[1], r[2], r[3:]) for r in RECORD.iter_unpack(data)]

    def code(self) -> int:
        """What the program's exit code was, or its signal, negated."""
        (record,) = self.records()
        assert record.kind == ENDED
        return os.waitstatus_to_exitcode(record.value)


@contextmanager
def output() -> Iterator[tuple[int, list[bytes]]]:
    """A pipe to write to, and what was written once all writers have gone."""
    reader, writer = os.pipe()
    seen: list[bytes] = []
    with open(reader, "rb") as file:
        try:
            yield writer, seen
        finally:
            os.close(writer)
        seen.append(file.read())


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_code(code: int) -> None:
    assert Run([*SHELL, f"exit {code}"]).code() == code


def test_signals_have_their_default_actions() -> None:
    """Init itself would ignore it."""
    assert Run([*SHELL, "kill -TERM $$"]).code() == -signal.SIGTERM


def test_output_and_session() -> None:
    with output() as (out, seen):
        run = Run([*PYTHON, "import os; print(os.getpid(), os.getppid(), os.getsid(0))"], out=out)
        assert run.code() == 0
    (pid, parent, session) = map(int, seen[0].split())
    assert (parent, session) == (1, pid)


def test_the_end_of_output_is_that_of_the_program() -> None:
    """Init has no descriptors of it."""
    with output() as (out, seen), output() as (other, _):
        run = Run([*SHELL, "exec >&- 7>&-; sleep 60"], out=out, fds={7: other})
        start = time.monotonic()
    assert time.monotonic() - start < 30
    assert seen == [b""]
    run.child.kill()
    assert run.records() == []


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        ("/nowhere:/bin", "true", 0),
        (None, "true", 0),
        ("/nowhere", "true", errno.ENOENT),
        ("/nowhere:", "missing", errno.ENOENT),
        ("/etc:/nowhere", "passwd", errno.EACCES),
        ("/etc/passwd:/bin", "true", 0),
        ("/bin", "/nowhere/true", errno.ENOENT),
        ("/x" * 3000 + ":/bin", "true", 0),
        ("/bin", "x" * 5000, errno.ENAMETOOLONG),
        ("/bin", "", errno.ENOENT),
    ],
)
def test_search(path: str | None, name: str, expected: int) -> None:
    run = Run([name], env={} if path is None else {"OTHER": "x", "PATH": path})
    records = run.records()
    if expected == 0:
        assert [(record.kind, record.value) for record in records] == [(ENDED, 0)]
    else:
        assert (records[0].kind, records[0].value) == (FAILED, expected)


def test_arguments_and_environment() -> None:
    args = ["", "a b", "é", "x" * 10_000]
    code = "import os, sys; print(ascii(sys.argv[1:]), ascii(dict(os.environ)))"
    env = {"A": "1", "PATH": "/bin", "LC_ALL": "C.UTF-8"}
    with output() as (out, seen):
        assert Run([*PYTHON, code, *args], out=out, env=env).code() == 0
    assert seen[0].decode() == f"{args!a} {env!a}\n"


def test_orphans_are_reaped_and_ended() -> None:
    """They go with the program."""
    code = """
import os, time
for i in range(3):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.05 if i else 60)
        os._exit(0)
    os.wait()
time.sleep(0.3)
os._exit(7)
"""
    with output() as (out, seen):
        assert Run([*PYTHON, code], out=out).code() == 7
    assert seen == [b""]  # nobody has the pipe any more


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_signals_are_passed_on(sig: signal.Signals) -> None:
    code = f"""
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [{int(sig)}])
print(flush=True)
signal.sigwait([{int(sig)}])
sys.exit(9)
"""
    reader, writer = os.pipe()
    with open(reader, "rb") as file:
        run = Run([*PYTHON, code], out=writer)
        os.close(writer)
        file.readline()
        run.child.send_signal(sig)
        assert run.code() == 9


def test_the_program_cannot_end_its_init() -> None:
    code = """
import os, signal, time
for sig in range(1, 65):
    if sig not in (32, 33):
        os.kill(1, sig)
time.sleep(0.1)
"""
    assert Run([*PYTHON, code]).code() == 0


def test_the_program_cannot_get_at_the_report() -> None:
    code = """
import ctypes, os
assert sorted(map(int, os.listdir("/proc/self/fd")))[:3] == [0, 1, 2]
assert not {20, 21} & set(map(int, os.listdir("/proc/self/fd")))
for name in ("fd/20", "mem", "maps", "exe"):
    try:
        open(f"/proc/{PID}/{name}", "rb").read(1)
    except PermissionError:
        continue
    raise SystemExit(name)
PTRACE_ATTACH = 16
assert ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_ATTACH, 1, 0, 0) == -1
"""
    # /proc is that of the outer namespace: there init has another pid.
    code = "PID = open('/proc/self/stat').read().split()[3]\n" + code
    with output() as (out, seen):
        run = Run([*PYTHON, code], out=out)
        assert run.code() == 0, seen


def test_it_ends_with_its_parent() -> None:
    """With the process, and not with the thread that has started it."""
    parent = subprocess.Popen(["/bin/sleep", "60"])
    pidfd = os.pidfd_open(parent.pid)
    run = Run([*SHELL, "sleep 60"], parent=pidfd)
    os.close(pidfd)
    assert run.child.poll() is None
    parent.kill()
    parent.wait()
    assert run.records() == []
    assert run.child.wait().code == 127


def test_it_tells_of_all_its_children() -> None:
    """Of those that are left to it, and of siblings of the program."""
    script = """if True:
        import contextlib, os, ramet
        from ramet import CloneFlags
        child = ramet.fork(CloneFlags.PARENT)
        if child is None:
            os._exit(7)
        print(child.pid, flush=True)
        if os.fork() == 0:  # its child is an orphan soon
            if os.fork() == 0:
                os._exit(8)
            os._exit(0)
        os.wait()
        with contextlib.suppress(ProcessLookupError):  # until it was reaped
            while True:
                os.kill(child.pid, 0)
    """
    with output() as (out, seen):
        run = Run([*PYTHON, script], out=out, whose="1")
        records = run.records()
    assert [record.kind for record in records].count(ENDED) == 1
    codes = {os.waitstatus_to_exitcode(r.value): r for r in records if r.kind == REAPED}
    assert codes.keys() <= {7, 8}
    assert codes[7].pid == int(seen[0])
    assert codes[7].rusage[4] > 0


def test_without_a_parent_to_watch() -> None:
    reader, writer = os.pipe()
    with ramet.spawn(
        ["init", "20", "-1", "0", "true"], executable=INIT, fds={20: writer},
        flags=CloneFlags.NEWUSER | CloneFlags.NEWPID,
    ) as child:  # fmt: skip
        os.close(writer)
        assert child.wait().code == 0
    with open(reader, "rb") as file:
        assert len(file.read()) == RECORD.size


def test_bad_arguments() -> None:
    assert subprocess.run([INIT, "1"], check=False).returncode == 127


def test_peak_memory_is_the_programs_own() -> None:
    """That of what execs straight out of our memory is ours."""
    ballast = bytearray(200 << 20)
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (record,) = Run(["/bin/true"]).records()
    maxrss = record.rusage[4]
    assert 0 < maxrss < 20_000 < len(ballast) // 1024 < ours


def test_no_init_but_a_reaper() -> None:
    """Outside of a pid namespace it reaps what is left to it, and passes signals on."""
    reader, writer = os.pipe()
    with ramet.spawn(
        ["init", "20", "-1", "0", *SHELL, "sleep 60"], executable=INIT, fds={20: writer}
    ) as child:
        os.close(writer)
        until(lambda: Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text())
        child.send_signal(signal.SIGTERM)
        child.wait()
    with open(reader, "rb") as file:
        (record,) = RECORD.iter_unpack(file.read())
    assert os.waitstatus_to_exitcode(record[1]) == -signal.SIGTERM


@pytest.mark.parametrize("target", ["aarch64", "riscv64"])
def test_elsewhere(target: str, tmp_path: Path) -> None:
    """It is built for each architecture, and runs a program under emulation."""
    gcc = require(f"{target}-linux-gnu-gcc")
    emulator = require(f"qemu-{target}-static", f"qemu-{target}")
    native = Path(__file__).parents[2] / "src/native"
    init = tmp_path / "init"
    subprocess.run(
        [gcc, "-O2", "-ffreestanding", "-fno-stack-protector", "-fno-builtin", "-nostdlib",
         "-static", "-no-pie", "-Wall", "-Werror", f"-I{native / 'arch' / target}", "-o", init,
         native / "init.c", native / "arch" / target / "start.S"],
        check=True,
    )  # fmt: skip
    report = tmp_path / "report"
    with open(report, "wb") as file:
        done = subprocess.run(
            [emulator, init, str(file.fileno()), "-1", "0", "/bin/sh", "-c", "exit 5"],
            pass_fds=[file.fileno()], check=False, timeout=60,
        )  # fmt: skip
    (record,) = RECORD.iter_unpack(report.read_bytes())
    assert done.returncode == 0
    assert (record[0], os.waitstatus_to_exitcode(record[1])) == (ENDED, 5)
