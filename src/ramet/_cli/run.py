"""``ramet run``: a program in a sandbox, with our own streams, signals and exit status."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ramet._cli import end_by
from ramet._cli._errors import FAILED, CommandError, reason
from ramet._cli._options import OPTIONS, Draft, drafted, own
from ramet._cli._words import Option, Page, read
from ramet.sandbox import _tree
from ramet.sandbox._sandbox import Sandbox
from ramet.sandbox._verdict import ProtectionError, Verdict

_DESCRIPTION = """\
Run a program in a sandbox: it sees the files that are listed here, read-only unless said otherwise,
and has no network, no capabilities, an empty environment, and processes of its own. All of it ends
with the program, or with this command."""
_EPILOG = """\
The exit status is that of the program; 128 and the signal's number if a signal ended it; 124 if it
was killed at a limit; 127 if there is no such program, 126 if it cannot be executed; 125 if there
was no sandbox. Nothing is run without a protection that was asked for, unless it is --optional."""
_AT_LIMIT = {
    "timeout": "it was killed when its time was over, after {0:.2f} s",
    "cpu": "it was killed when it had used up its processor time, after {0:.2f} s",
    "memory": "it was killed when it had used more memory than it may",
    "output": "it was killed when it had written more than it may",
}
_PYTHON = ("python", "python3")
_DEADLY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def _pass_fd(draft: Draft, word: str) -> None:
    draft.own.setdefault("pass_fd", []).append(int(word))


def _output(word: str) -> int:
    """Check a descriptor before anything is run."""
    number = int(word)
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise CommandError("it is not open for writing")
    return number


PAGE = Page(
    "ramet run [options] [--] PROGRAM [ARGUMENT...]",
    _DESCRIPTION,
    {
        **OPTIONS,
        "the verdict": (
            Option("--json", "", own("json"), "write it as JSON, to stderr"),
            Option("--json-fd", "FD", own("json_fd", _output), "write it as JSON, to a descriptor"),
            Option(
                "--capture", "", own("capture"), "keep what the program writes, as a part of it"
            ),
        ),
        "descriptors": (
            Option(
                "--pass-fd",
                "FD",
                _pass_fd,
                "one that the program has, too, beside 0, 1 and 2; can be repeated",
            ),
        ),
    },
    _EPILOG,
)


class _EndedError(BaseException):
    """A signal is to end this process, once the sandbox has ended."""


def main(words: Sequence[str]) -> int:
    """Run it.

    Args:
        words: the command line behind ``ramet run``.

    Returns:
        The exit status.
    """
    line = read(PAGE, words)
    if not line.rest:
        raise CommandError("there is no program to run; see ramet run --help")
    said: dict[str, Any] = {}
    try:
        draft = drafted(line)
        said = draft.own
        with _signals():
            verdict = _run(draft.finish(), line.rest, said)
    except _EndedError as error:
        end_by(error.args[0])
        return FAILED
    except ProtectionError as error:
        verdict = Verdict(reason="start_failed", error=f"{reason(error)}; see ramet doctor")
    except (CommandError, RuntimeError, OSError, TypeError, ValueError) as error:
        verdict = Verdict(reason="start_failed", error=reason(error))
    try:
        _report(verdict, said)
    except OSError as error:  # the status is that of what was run all the same
        with suppress(OSError):
            sys.stderr.write(f"ramet run: the verdict cannot be written: {reason(error)}\n")
    return verdict.shell_status


def _run(sandbox: Sandbox, command: list[str], said: dict[str, Any]) -> Verdict:
    program, *arguments = command
    if sandbox.python and program in _PYTHON:
        program = sys.executable  # which PATH need not lead to
    return sandbox.run(
        [program, *arguments],
        stdin=0,
        stdout=None if "capture" in said else 1,
        stderr=None if "capture" in said else 2,
        fds={number: number for number in said.get("pass_fd", ())},
    )


def _report(verdict: Verdict, said: dict[str, Any]) -> None:
    """Say what became of it: as JSON, or what the exit status alone does not tell."""
    if "json_fd" in said or "json" in said or "capture" in said:
        number = said.get("json_fd", 2)
        with open(number, "w", encoding="utf-8", closefd=False) as file:
            file.write(f"{verdict.to_json()}\n")
        return
    hint = "; see ramet doctor" if verdict.receipt and verdict.shell_status == FAILED else ""
    text = verdict.error or _AT_LIMIT.get(verdict.reason, "").format(verdict.wall_time)
    if text:
        sys.stderr.write(f"ramet run: {text}{hint}\n")


# --- signals --------------------------------------------------------------------------------------


@contextmanager
def _signals() -> Iterator[None]:
    """Have signals end the sandbox first, and those of a terminal stop all of it."""
    handlers = dict.fromkeys(_DEADLY, _end) | {signal.SIGTSTP: _stop}
    # What is ignored stays so: by nohup, or in the background of a script.
    ours = {
        number: handler
        for number, handler in handlers.items()
        if signal.getsignal(number) != signal.SIG_IGN
    }
    before = {number: signal.signal(number, handler) for number, handler in ours.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _frame: object) -> None:
    for each in _DEADLY:  # it ends in a moment, and not in the middle of that
        signal.signal(each, signal.SIG_IGN)
    raise _EndedError(number)


def _stop(number: int, _frame: object) -> None:
    """Stop what is in the sandbox, and this process, until it is continued."""
    _send_all(signal.SIGSTOP)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.signal(number, _stop)
    _send_all(signal.SIGCONT)


def _send_all(number: int) -> None:
    """Send a signal to our descendants, which are those in the sandbox."""
    for pid in list(_tree.walk(os.getpid()))[1:]:
        with suppress(OSError):  # it has ended
            os.kill(pid, number)
