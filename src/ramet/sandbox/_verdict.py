"""Verdict and receipt: what became of a sandboxed program, and what it was held by. Data only."""

from __future__ import annotations

import binascii
import math
from collections.abc import Iterable, Mapping
from errno import ENOENT
from typing import Any, Literal, NamedTuple

from ramet._record import Record

Reason = Literal[
    "exited", "signalled", "timeout", "cpu", "memory", "output", "raised", "start_failed"
]


class Protection(NamedTuple):
    """A line of a receipt.

    Attributes:
        name: what is protected, as `Sandbox` has it in `require` and `optional`.
        requested: what the policy asks for.
        state: ``"applied"``: the kernel does it; ``"degraded"``: it is done in part or not at all,
            which the policy allows; ``"planned"``: the program was not started.
        how: by what, or why not.
    """

    name: str
    requested: str
    state: Literal["applied", "degraded", "planned"]
    how: str


class ProtectionError(RuntimeError):
    """A protection that a policy requires cannot be had here. Nothing was started.

    Attributes:
        name: which one.
        reason: why not, and what can be done about it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name} cannot be enforced: {self.reason}"


class Verdict(Record, kw_only=True):
    """What became of a program in a sandbox.

    Attributes:
        reason: ``"exited"``; ``"signalled"``: a signal ended it; ``"timeout"``, ``"cpu"``,
            ``"memory"``, ``"output"``: it was killed at that limit; ``"raised"``: a Python function
            or source raised an exception; ``"start_failed"``: it was never run, see `error`.
        exit_code: 0 to 255, None if it did not exit.
        signal: the number of the signal that ended it, else None.
        error: what failed, for ``"start_failed"`` (the step, with its system call) and
            ``"raised"`` (the traceback); for a function that has ended otherwise, why there is no
            value; else None.
        errno: the error of execve(2) with which the program itself was refused, else None.
        wall_time: seconds from the start to the end.
        user_time: seconds of processor time in programs.
        system_time: seconds of processor time in the kernel.
        peak_memory: bytes that it used at most; None if that is not known.
        peak_memory_source: what that is about, and who says so.
        stdout: what it wrote, as far as that was kept.
        stderr: the same.
        stdout_truncated: there was more than the limit.
        stderr_truncated: the same.
        value: what a Python function or source returned; else None.
        receipt: each protection.
    """

    _hidden = frozenset(("receipt",))

    reason: Reason
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None
    errno: int | None = None
    wall_time: float = 0.0
    user_time: float = 0.0
    system_time: float = 0.0
    peak_memory: int | None = None
    peak_memory_source: str = ""
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    value: Any = None
    receipt: tuple[Protection, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it exited with 0; and if it was a function, whether that has returned."""
        return self.reason == "exited" and self.exit_code == 0 and self.error is None

    @property
    def shell_status(self) -> int:
        """The exit status that a shell would give.

        The exit code; 128 and the signal's number; 124 as timeout(1) for what was killed at a
        limit; 127 if there is no such program, 126 if it cannot be executed; 125 if there was
        no sandbox.
        """
        if self.reason in {"timeout", "cpu", "memory", "output"}:
            return 124
        if self.reason == "start_failed":
            return {None: 125, ENOENT: 127}.get(self.errno, 126)
        if self.exit_code is not None:
            return self.exit_code
        return 126 if self.signal is None else 128 + self.signal

    def __bool__(self) -> bool:
        return self.ok

    def to_json(self, *, indent: int | None = None) -> str:
        """Render as JSON.

        Output that is no UTF-8 becomes an object with a key ``base64``, as do bytes in a value;
        what else JSON does not have, such as NaN, is text.

        Args:
            indent: as of json.dumps.
        """
        import json  # noqa: PLC0415 - here only

        content = self.fields()
        content["stdout"], content["stderr"] = _text(self.stdout), _text(self.stderr)
        content["receipt"] = [line._asdict() for line in self.receipt]
        content["value"] = _plain(self.value)
        return json.dumps(content, indent=indent, allow_nan=False)


class CallError(RuntimeError):
    """A Python function in a sandbox has not returned.

    Attributes:
        verdict: why not.
    """

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self.verdict = verdict

    def __str__(self) -> str:
        verdict = self.verdict
        how = f"signal {verdict.signal}" if verdict.signal else f"exit code {verdict.exit_code}"
        text = f"the function has not returned: {verdict.reason}"
        text += f", {how}" if verdict.reason in {"exited", "signalled"} else ""
        return f"{text}\n{verdict.error}" if verdict.error else text


def _text(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return _base64(data)


def _base64(data: bytes | bytearray | memoryview) -> dict[str, str]:
    return {"base64": binascii.b2a_base64(data, newline=False).decode()}


def _plain(value: Any) -> object:
    """Turn what JSON does not have into what it has."""
    if value is None or isinstance(value, str | int) or _is_finite(value):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return _base64(value)
    # An array has lists.
    return _plain(value.tolist()) if hasattr(value, "tolist") else repr(value)


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def planned(receipt: Iterable[Protection]) -> tuple[Protection, ...]:
    """Mark the lines of a receipt as what was not come to."""
    return tuple(line._replace(state="planned") for line in receipt)
