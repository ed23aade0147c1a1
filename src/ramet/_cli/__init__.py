"""The ``ramet`` command: finds the subcommand, and says what went wrong in one line."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from ramet._cli._errors import FAILED, CommandError, reason
from ramet._cli._words import HelpWanted

_COMMANDS = {
    "run": "run a program in a sandbox",
    "explain": "show how a sandbox is made, and what it enforces, without running anything",
    "doctor": "find out what this kernel, user and container allow, and what can be done",
    "bench": "measure how long starts take here",
}
_USAGE = "usage: ramet COMMAND ..., where COMMAND is one of\n\n" + "".join(
    f"  {name:9}{summary}\n" for name, summary in _COMMANDS.items()
)
_HELP = _USAGE + "\nramet COMMAND --help tells more, and ramet --version which one this is.\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; by default those of this process.

    Returns:
        The exit status: that of the subcommand, or 125 if it could not do its work.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    if name in _COMMANDS:
        return _run(name, words[1:])
    if name in {"-h", "--help"}:
        sys.stdout.write(_HELP)
        return 0
    if name in {"-V", "--version"}:
        from importlib.metadata import version  # noqa: PLC0415 - here only

        sys.stdout.write(f"ramet {version('ramet')}\n")
        return 0
    sys.stderr.write(f"ramet: there is no command {name!r}\n" if name else _HELP)
    return FAILED


def main_and_exit() -> NoReturn:
    """Run the command, and end this process, in the shortest time."""
    gc.disable()  # there is little garbage, and soon none
    _open_standard_streams()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    status = main()
    sys.stderr.flush()
    os._exit(status)  # not much later than the program of `run`: nothing is left to be taken apart


def _run(name: str, words: list[str]) -> int:
    try:
        status: int = import_module(f"ramet._cli.{name}").main(words)
        sys.stdout.flush()
    except (CommandError, RuntimeError, OSError, ValueError, TypeError) as error:
        sys.stderr.write(f"ramet {name}: {reason(error)}\n")
        return FAILED
    except HelpWanted as wanted:
        sys.stdout.write(str(wanted))
        return 0
    except KeyboardInterrupt:
        end_by(signal.SIGINT)
        raise
    return status


def end_by(number: int) -> None:
    """End this process by a signal, so that whoever waits for it knows."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _open_standard_streams() -> None:
    """See to it that 0, 1 and 2 are open: else the next pipe would be taken for one of them."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
