"""SandboxedPopen: a subprocess.Popen about a program in a sandbox."""

from __future__ import annotations

import ast
import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, TimeoutExpired
from typing import Any

import pytest

import ramet
from ramet import ChildError
from ramet.sandbox import ProtectionError, Sandbox, _cgroup
from ramet.sandbox._popen import SandboxedPopen
from tests.isolated import run_python
from tests.waiting import children, until

SYSTEM = Sandbox(system=True)
PYTHON = Sandbox(python=True)
FOR_EVER = ["sleep", "1000"]
# Says that it is ready, so that no signal comes before it has its handlers.
HANDLER = "trap 'echo got; exit 5' {}; echo ready; while :; do sleep 0.01; done"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No test leaves a descriptor or a process."""
    descriptors, processes = os.listdir("/proc/self/fd"), children()
    yield
    gc.collect()  # errors hold what was under way
    assert os.listdir("/proc/self/fd") == descriptors
    assert children() == processes


def shell(script: str, sandbox: Sandbox = SYSTEM, **options: Any) -> SandboxedPopen:
    return sandbox.popen(["sh", "-c", script], **options)


# --- streams --------------------------------------------------------------------------------------


def test_communicate() -> None:
    with shell("cat; echo bad >&2", stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        assert isinstance(process, ramet.Popen)
        data = bytes(range(256)) * 1000
        assert process.communicate(data) == (data, b"bad\n")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        ({"text": True}, "é\n", "é\n"),
        ({"encoding": "latin-1"}, "é", "é"),
        ({"encoding": "ascii", "errors": "replace"}, "a", "a"),
        ({"bufsize": 0}, b"a", b"a"),
        ({"pipesize": 1 << 12}, b"a" * 10_000, b"a" * 10_000),
        ({}, None, b""),
    ],
)
def test_kinds_of_pipes(options: dict[str, Any], given: Any, expected: Any) -> None:
    with SYSTEM.popen(["cat"], stdin=PIPE, stdout=PIPE, **options) as process:
        assert process.communicate(given) == (expected, None)


def test_errors_of_encodings() -> None:
    with shell(r"printf '\377'", stdout=PIPE, encoding="ascii", errors="replace") as process:
        assert process.communicate() == ("\ufffd", None)


def test_line_by_line() -> None:
    with SYSTEM.popen(["cat"], stdin=PIPE, stdout=PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in ("one\n", "two\n"):
            process.stdin.write(line)
            assert process.stdout.readline() == line


def test_streams_of_ours(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+b") as file:
        with shell("echo out; echo err >&2", stdout=file, stderr=STDOUT) as process:
            process.wait()
        file.seek(0)
        assert file.read() == b"out\nerr\n"
    with SYSTEM.popen(["cat"], stdin=DEVNULL, stdout=PIPE) as process:
        assert process.communicate() == (b"", None)


def test_streams_are_inherited(capfd: pytest.CaptureFixture[str]) -> None:
    with shell("echo out; echo err >&2") as process:
        process.wait()
    assert capfd.readouterr() == ("out\n", "err\n")


def test_a_directory_is_no_stream() -> None:
    """It would lead out of the sandbox."""
    directory = os.open("/", os.O_RDONLY)
    try:
        for name in ("stdin", "stdout", "stderr"):
            options: dict[str, Any] = {name: directory}
            with pytest.raises(ValueError, match="directory, which leads out"):
                SYSTEM.popen(["true"], **options)
        with pytest.raises(ValueError, match="directory, which leads out"):
            SYSTEM.popen(["true"], pass_fds=[directory])
    finally:
        os.close(directory)


# --- descriptors ----------------------------------------------------------------------------------


def python(code: str, *numbers: int) -> bytes:
    """Run Python code that has descriptors; what it writes."""
    args = [sys.executable, "-I", "-S", "-c", code]
    with PYTHON.popen(args, stdout=PIPE, pass_fds=numbers) as process:
        said: bytes = process.communicate()[0]
    assert process.returncode == 0
    return said


def test_pass_fds() -> None:
    """Those that are named have the same numbers there, and no others are."""
    with tempfile.TemporaryFile() as file, socket.socket() as other:
        file.write(b"passed")
        file.seek(0)
        os.set_inheritable(other.fileno(), True)
        number = file.fileno()
        said = python(
            f"import os; assert os.read({number}, 9) == b'passed'\n"
            "there = os.listdir('/proc/self/fd')\n"
            "print([fd for fd in map(int, there) if os.path.exists(f'/proc/self/fd/{fd}')])",
            number,
        )
    assert sorted(ast.literal_eval(said.decode())) == [0, 1, 2, number]


@pytest.mark.parametrize("number", [100, 1000])
def test_high_numbers(number: int) -> None:
    reader, writer = os.pipe()
    os.dup2(writer, number)
    try:
        python(f"import os; os.write({number}, b'there')", number)
        assert os.read(reader, 10) == b"there"
    finally:
        for each in (reader, writer, number):
            os.close(each)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_standard_streams_are_not_passed(number: int) -> None:
    with pytest.raises(ValueError, match="stdin, stdout and stderr"):
        SYSTEM.popen(["true"], pass_fds=[number])


def test_descriptors_that_there_are_not() -> None:
    options: dict[str, Any]
    for options in ({"pass_fds": [12_345]}, {"stdout": 12_345}):
        with pytest.raises(OSError, match="Bad file descriptor"):
            SYSTEM.popen(["true"], **options)


# --- how it ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -TERM $$", -15), ("kill -9 $$", -9)],
)
def test_return_codes(script: str, code: int) -> None:
    with shell(script) as process:
        assert process.wait(20) == code
        assert process.poll() == code
        process.kill()  # nobody
        process.send_signal(0)
    assert process.returncode == code
    assert process.exit_status is not None


def test_no_such_program() -> None:
    for program in ("no-such-program", "/no/such/program", "/etc/passwd", "/"):
        with SYSTEM.popen([program]) as process:
            assert process.wait() == 127


def test_a_start_that_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Sandbox(system=True, cwd="/missing").popen(["true"], stdin=PIPE, stdout=PIPE)
    assert isinstance(caught.value, ChildError)
    assert caught.value.filename == "/missing"


def test_bad_arguments() -> None:
    for args, kind in (([], ValueError), ("true", TypeError), ([1], TypeError)):
        with pytest.raises(kind):
            SYSTEM.popen(args)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="null"):
        SYSTEM.popen(["true", "a\0b"])


def test_timeout() -> None:
    with SYSTEM.popen(FOR_EVER) as process:
        with pytest.raises(TimeoutExpired):
            process.wait(0.01)
        assert process.poll() is None
        with pytest.raises(TimeoutExpired):
            process.communicate(timeout=0.01)
        process.kill()
        assert process.wait() == -9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_program(number: signal.Signals) -> None:
    """Handled, or by their default actions: the program is no init."""
    name = number.name.removeprefix("SIG")
    with shell(HANDLER.format(name), stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "got\n"
        assert process.wait() == 5
    with shell("echo ready; exec sleep 1000", stdout=PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait() == -number


def test_terminate_before_the_program_runs() -> None:
    """It is not lost."""
    for _ in range(20):
        with SYSTEM.popen(FOR_EVER) as process:
            process.terminate()
            assert process.wait(20) == -15


def test_kill_ends_all() -> None:
    """Also what does all to live on. The pipe is open as long as one of them is."""
    reader, writer = os.pipe()
    with open(reader, "rb") as file:
        script = "trap '' TERM HUP INT; (setsid sleep 1000 & setsid sleep 1000) & echo ready; wait"
        with shell(script, stdout=writer) as process:
            os.close(writer)
            assert file.readline() == b"ready\n"
            process.kill()
            assert file.read() == b""
    assert process.returncode == -9


@pytest.mark.parametrize("ending", ["exit 3", "kill -9 $$"])
def test_nothing_outlives_the_program(ending: str) -> None:
    reader, writer = os.pipe()
    script = f"setsid sleep 1000 & {ending}"
    with open(reader, "rb") as file, shell(script, stdout=writer) as process:
        os.close(writer)
        assert file.read() == b""
        assert process.wait() in {3, -9}


def test_nothing_outlives_us() -> None:
    """It ends with the process that has started it, however that ends."""
    reader, writer = os.pipe()
    with open(reader, "rb") as file:
        code = (
            "import os, ramet\n"
            f"process = ramet.Sandbox(system=True).popen({FOR_EVER}, stdout={writer})\n"
            "os.kill(os.getpid(), 9)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], pass_fds=[writer], check=False)
        assert done.returncode == -9
        os.close(writer)
        assert file.read() == b""


def test_where_sigchld_is_ignored() -> None:
    """Nobody hears how the first process ended; but how the program did."""
    run_python(
        "import ramet, signal\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "sandbox = ramet.Sandbox(system=True)\n"
        "with sandbox.popen(['sh', '-c', 'exit 3']) as process:\n"
        "    assert process.wait() == 3\n"
        "with sandbox.popen(['sleep', '1000']) as process:\n"
        "    process.kill()\n"
        "    assert process.wait() == -9\n"
        "assert sandbox.run(['sh', '-c', 'exit 3']).exit_code == 3\n"
    )


def test_several_at_once() -> None:
    started = [shell(f"exit {i}") for i in range(20)]
    assert [process.wait() for process in started] == list(range(20))


@pytest.mark.filterwarnings("ignore:.*still running:ResourceWarning")
def test_dropped() -> None:
    """The program goes on; as with the standard class."""
    reader, writer = os.pipe()
    pid = shell("read line; echo $line", stdin=reader, stdout=writer).pid
    os.close(reader)
    os.close(writer)
    os.kill(pid, 0)
    os.kill(pid, 9)

    def is_gone() -> bool:
        subprocess._cleanup()  # type: ignore[attr-defined] # the standard class has kept it
        return pid not in children()

    until(is_gone)


def test_pidfd() -> None:
    """It can be waited for by an event loop."""

    async def wait(process: SandboxedPopen) -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(process.pidfd, ended.set)
        await ended.wait()
        loop.remove_reader(process.pidfd)

    with shell("exit 3") as process:
        asyncio.run(wait(process))
        assert process.poll() == 3


# --- limits ---------------------------------------------------------------------------------------


def test_limits_that_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cgroup, "find_parent", lambda *_: (None, "there is none"))
    for name, sandbox in (
        ("wall_time", Sandbox(wall_time=5)),
        ("cpu_time", Sandbox(cpu_time=5)),
        ("memory", Sandbox(memory=1 << 26, optional=["memory", "swap"])),
    ):
        with pytest.raises(ProtectionError, match="nobody watches") as caught:
            sandbox.popen(["true"])
        assert caught.value.name == name


def test_limits_of_processes() -> None:
    limited = Sandbox(system=True, file_size=1024, rlimits={"nofile": 32})
    with shell("ulimit -f; ulimit -n", limited, stdout=PIPE) as process:
        assert process.communicate()[0].split() == [b"2", b"32"]
