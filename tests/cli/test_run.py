"""``ramet run``: streams, statuses, verdicts and signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet.sandbox import _tree
from tests.cli.conftest import Command
from tests.isolated import run_python
from tests.waiting import until

RAMET = [sys.executable, "-m", "ramet"]
HOG = "x = b'x' * 300_000_000; import time; time.sleep(1000)"


# --- exit statuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("-- true", 0, ""),
        ("true", 0, ""),
        ("-- sh -c 'exit 3'", 3, ""),
        ("sh -c 'exit $#' -- -- a", 2, ""),
        ("-- sh -c 'kill -9 $$'", 137, ""),
        ("-- no-such-program", 127, "execve('no-such-program', ...) failed: No such file"),
        ("-- /etc/passwd", 126, "execve('/etc/passwd', ...) failed: Permission denied"),
        ("--timeout 0.2 -- sleep 1000", 124, "it was killed when its time was over, after 0."),
        ("--cpu-time 0.2 -- sh -c 'while :; do :; done'", 124, "used up its processor time"),
        ("", 125, "there is no program to run"),
        ("--memory", 125, "--memory must be followed by SIZE"),
        ("--tmpfs=/x --bind=/usr", 125, "--bind must be followed by SRC DEST"),
        ("--pass-fd 999 -- true", 125, "Bad file descriptor"),
    ],
)
def test_status(command: Command, words: str, status: int, said: str) -> None:
    done = command("run", *_split(words))
    assert done.status == status
    assert said in done.stderr
    assert done.stderr.count("\n") == bool(said)


def _split(words: str) -> list[str]:
    return [word.strip("'") for word in re.findall(r"'[^']*'|\S+", words)]


def test_memory(command: Command) -> None:
    options = ("--python", "--memory", "100M", "--optional", "memory,swap", "--json")
    done = command("run", *options, "--", "python", "-I", "-S", "-c", HOG)
    assert done.status == 124
    assert json.loads(done.stderr)["reason"] == "memory"


# --- streams ------------------------------------------------------------------------------------


def test_streams() -> None:
    script = "cat; echo bad >&2"
    args = [*RAMET, "run", "--", "sh", "-c", script]
    done = subprocess.run(args, input=b"read", capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"read", b"bad\n")


def test_closed_streams() -> None:
    args = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *RAMET, "run", "--"]
    script = "test -c /dev/fd/0 && test -c /dev/fd/1 && test -c /dev/fd/2 && test ! -e /dev/fd/3"
    assert subprocess.run([*args, "sh", "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(("options", "said"), [(["--pass-fd", "5"], b"hi\n"), ([], b"")])
def test_a_descriptor_that_is_passed(options: list[str], said: bytes) -> None:
    args = ["sh", "-c", '"$@" 5>&1', "sh", *RAMET, "run", *options, "--", "sh", "-c", "echo hi >&5"]
    assert subprocess.run(args, capture_output=True, check=False).stdout == said


def test_a_directory_is_not_passed(command: Command) -> None:
    number = os.open("/", os.O_RDONLY)
    try:
        done = command("run", "--pass-fd", str(number), "--", "true")
    finally:
        os.close(number)
    assert done.status == 125
    assert "is a directory, which leads out of the sandbox" in done.stderr


# --- the verdict --------------------------------------------------------------------------------


def test_json(command: Command) -> None:
    done = command("run", "--json", "--", "sh", "-c", "echo out; exit 3")
    verdict = json.loads(done.stderr)
    assert (done.status, done.stdout) == (3, "out\n")
    assert (verdict["reason"], verdict["exit_code"], verdict["stdout"]) == ("exited", 3, "")
    assert {line["state"] for line in verdict["receipt"]} == {"applied"}


def test_capture(command: Command) -> None:
    script = "echo out; echo err >&2"
    done = command("run", "--capture", "--", "sh", "-c", script)
    verdict = json.loads(done.stderr)
    assert (done.stdout, verdict["stdout"], verdict["stderr"]) == ("", "out\n", "err\n")
    flood = json.loads(command("run", "--capture", "--output-size", "10", "--", "yes").stderr)
    assert (flood["reason"], flood["stdout"]) == ("output", "y\n" * 5)


def test_json_to_a_descriptor(command: Command) -> None:
    done = command("run", "--capture", "--json-fd", "1", "--", "echo", "hi")
    assert json.loads(done.stdout)["stdout"] == "hi\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (9, ("Bad file descriptor",)),
        (0, ("not open for writing",)),
        (8, ("cannot be written", "No space")),
    ],
)
def test_verdicts_that_nobody_gets(number: int, words: tuple[str, ...]) -> None:
    """Nothing is run if that is known; else the status is still that of the program."""
    run = f'"$@" run --json-fd {number} -- sh -c "echo ran; exit 3"'
    script = f"exec {run} </dev/null 8>/dev/full 9>&-"
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *RAMET],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == ((3, "ran\n") if number == 8 else (125, ""))
    assert all(each in done.stderr for each in words)


@pytest.mark.parametrize("options", ["--cgroup /no/such", "--ro-bind /no/such /x"])
def test_json_of_what_was_not_started(command: Command, options: str) -> None:
    done = command("run", "--json", *options.split(), "--", "true")
    assert done.status == 125
    assert json.loads(done.stderr)["reason"] == "start_failed"


# --- signals ------------------------------------------------------------------------------------


@contextmanager
def _running(*options: str) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A command that sleeps in a sandbox, and the processes of that."""
    args = [*RAMET, "run", *options, "--", "sh", "-c", "sleep 1000 & sleep 1000"]
    # A group of its own, as a shell would make it.
    with subprocess.Popen(args, process_group=0, stderr=subprocess.PIPE) as process:
        try:

            def inside() -> list[int]:
                found = list(_tree.walk(process.pid))[1:]
                sleeping = [pid for pid in found if _stat(pid)[0] == "sleep"]
                return found if len(sleeping) == 2 else []

            yield process, until(inside)
        finally:
            process.kill()


def _stat(pid: int) -> tuple[str, str]:
    """Name and state of a process; nothing if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", ""
    name, _, rest = text.partition("(")[2].rpartition(") ")
    return name, rest[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it(number: signal.Signals) -> None:
    """It dies by the signal, without a word, and leaves no process."""
    with _running() as (process, inside):
        process.send_signal(number)
        assert process.wait(20) == -number
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert [pid for pid in inside if _stat(pid)[0]] == []


def test_kill_ends_it() -> None:
    with _running() as (process, inside):
        process.kill()
        process.wait(20)
        until(lambda: {_stat(pid)[1] for pid in inside} <= {"", "Z"})  # whoever has it reaps it


def test_ignored_signals_stay_so() -> None:
    code = (
        "import signal, os\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from ramet._cli import main\n"
        "pid = os.getpid()\n"
        "from ramet._cli import run\n"
        "with run._signals():\n"
        "    os.kill(pid, signal.SIGHUP)\n"
        "assert main(['run', '--', 'true']) == 0\n"
    )
    run_python(code)


def test_it_stops_and_continues() -> None:
    """As the terminal's Ctrl-Z does it: all of it, and all goes on."""
    with _running() as (process, inside):
        process.send_signal(signal.SIGTSTP)
        until(lambda: {_stat(pid)[1] for pid in [process.pid, *inside]} == {"T"})
        process.send_signal(signal.SIGCONT)
        until(lambda: {_stat(pid)[1] for pid in [process.pid, *inside]} == {"S"})
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM


# --- start-up -----------------------------------------------------------------------------------


def test_what_it_imports() -> None:
    """Nothing that takes long, and that it does not need."""
    heavy = "argparse asyncio dataclasses inspect json shutil socket subprocess tempfile tomllib"
    code = (
        "import sys\n"
        "from ramet import _cli\n"
        "assert _cli.main(['run', '--', 'true']) == 0\n"
        f"assert not sys.modules.keys() & set({heavy.split()}), sys.modules.keys()\n"
    )
    args = [sys.executable, "-c", code]  # -X dev imports more
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
