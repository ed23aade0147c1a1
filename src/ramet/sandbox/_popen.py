"""Popen of a program in a sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from signal import SIGKILL
from typing import Any

from ramet._child import ExitStatus
from ramet._popen import Popen
from ramet._spawn import Descriptors
from ramet._steps import Env, Path
from ramet.sandbox._run import Started, number_of

_INHERITED = -1
Start = Callable[[list[Any], Mapping[int, int]], Started]


class SandboxedPopen(Popen):
    """A `ramet.Popen` whose program runs in a sandbox; made by `Sandbox.popen`.

    ``pid``, ``pidfd`` and ``send_signal`` are about the first process of the sandbox, which passes
    signals on to the program, and ends with it; ``kill`` ends all that is in the sandbox. The
    return code is that of the program.
    """

    def __init__(self, start: Start, args: Any, **options: Any) -> None:
        self._begin = start
        self._started: Started | None = None
        super().__init__(args, **options)

    def _launch(
        self,
        args: list[Path],
        executable: Path,  # noqa: ARG002 - the sandbox looks for it
        env: Env | None,  # noqa: ARG002 - the policy has it
        descriptors: Descriptors,
        **setup: Any,  # noqa: ARG002 - the same
    ) -> None:
        given = {i: number_of(i if fd == _INHERITED else fd) for i, fd in descriptors}
        self._started = self._begin(args, given)
        self._adopt(self._started.child)

    def _code_of(self, status: ExitStatus | None) -> int:
        assert self._started is not None  # noqa: S101 - for types
        record = self._started.report.read()
        if self._started.group is not None:
            self._started.group.close()
        if record is None:  # it was killed before the program had ended
            return -SIGKILL if status is None else status.returncode or _NOT_FOUND
        return _NOT_FOUND if record.status is None else record.status.returncode


_NOT_FOUND = 127  # as of a shell
