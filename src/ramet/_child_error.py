"""ChildError: a step of a program that failed in the child.

Knows how to say it, nothing of how programs are made or run.
"""

from __future__ import annotations

import errno as _errno
import os

from ramet._child import ExitStatus


class ChildError(OSError):
    """A child could not do what it was to do before it ran its program.

    It is also a FileNotFoundError, PermissionError and so on, as the errno has it, and pickles.

    Attributes:
        errno: the errno of the system call that failed. ECANCELED if a signal ended the child, and
            EPROTO if the result was not the expected one.
        strerror: what that means.
        filename: the path that is at fault, None if there is none.
        call: the system call with its arguments, in words.
        step: its number in the program, from 1.
        steps: how many steps the program has.
        status: how the child ended, if a signal ended it; else None.
    """

    call: str = ""
    step: int = 0
    steps: int = 0
    status: ExitStatus | None = None
    _said: str = ""

    @classmethod
    def _make(
        cls,
        error: int,
        call: str,
        step: int,
        steps: int,
        said: str,
        filename: str | bytes | None = None,
        status: ExitStatus | None = None,
    ) -> ChildError:
        kind = _KINDS.get(type(OSError(error, "")), ChildError)
        made = kind(error, os.strerror(error), filename)
        made.call, made.step, made.steps = call, step, steps
        made.status, made._said = status, said
        return made

    def __str__(self) -> str:
        if not self.call:
            return super().__str__()
        return f"{self.call} {self._said} (step {self.step} of {self.steps})"

    def __reduce__(self) -> tuple[object, ...]:
        if not self.call:
            return type(self), self.args
        filename = self.filename
        values = (self.errno, self.call, self.step, self.steps, self._said, filename, self.status)
        return ChildError._make, values


_BUILTIN = (
    BlockingIOError,
    BrokenPipeError,
    ChildProcessError,
    ConnectionAbortedError,
    ConnectionRefusedError,
    ConnectionResetError,
    FileExistsError,
    FileNotFoundError,
    InterruptedError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ProcessLookupError,
    TimeoutError,
)
# So that what is caught is what subprocess would raise.
_KINDS: dict[type[OSError], type[ChildError]] = {
    kind: type(f"Child{kind.__name__}", (ChildError, kind), {"__module__": "ramet"})
    for kind in _BUILTIN
}


def failed_step(
    result: int,
    call: str,
    step: int,
    steps: int,
    *,
    filename: str | bytes | None = None,
    expected: int | None = None,
    advice: str = "",
) -> ChildError:
    """Make the error for a step that failed.

    Args:
        result: what the system call returned: -errno, or what was not expected.
        call: the call in words.
        step: its number, from 1.
        steps: of how many.
        filename: the path that may be at fault.
        expected: what it should have returned.
        advice: what to do about it, where that is known.
    """
    if result < 0:
        error = -result
        said = f"failed: {_errno.errorcode.get(error, error)}, {os.strerror(error)}"
    else:
        error = _errno.EPROTO
        said = f"returned {result}, not {expected}"
    if advice:
        said += f"; {advice}"
    return ChildError._make(error, call, step, steps, said, filename)


def killed_in_step(call: str, step: int, steps: int, status: ExitStatus) -> ChildError:
    """Make the error for a child that a signal ended in the middle of its program."""
    return ChildError._make(
        _errno.ECANCELED, call, step, steps, f"was not finished: the child was {status._words()}",
        status=status,
    )  # fmt: skip
