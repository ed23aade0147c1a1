"""Popen of a program in a sandbox."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from signal import SIGKILL
from typing import Any

from ramet._child import ExitStatus
from ramet._popen import Popen
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

    def _execute_child(
        self,
        args: Any,
        executable: Any,  # noqa: ARG002 - the standard class passes all of these
        preexec_fn: Any,  # noqa: ARG002
        close_fds: bool,  # noqa: ARG002
        pass_fds: Iterable[int],
        cwd: Any,  # noqa: ARG002
        env: Any,  # noqa: ARG002
        startupinfo: Any,  # noqa: ARG002
        creationflags: Any,  # noqa: ARG002
        shell: bool,  # noqa: ARG002
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        *_: Any,
    ) -> None:
        argv = list(args)
        sys.audit("subprocess.Popen", argv[0], argv, None, None)
        given = enumerate((p2cread, c2pwrite, errwrite))
        descriptors = {i: i if fd == _INHERITED else fd for i, fd in given}
        descriptors |= {fd: fd for fd in pass_fds}
        descriptors = {i: number_of(fd) for i, fd in descriptors.items()}
        self._started = self._begin(argv, descriptors)
        self._child = self._started.child
        self._child._quiet, self._child._kill = True, False  # we warn
        self.pid = self._child._pid
        self._child_created = True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite
        )

    def _code_of(self, status: ExitStatus | None) -> int:
        assert self._started is not None  # noqa: S101 - for types
        record = self._started.report.read()
        if self._started.group is not None:
            self._started.group.close()
        if record is None:  # it was killed before the program had ended
            return -SIGKILL if status is None else status.returncode or _NOT_FOUND
        return _NOT_FOUND if record.status is None else record.status.returncode


_NOT_FOUND = 127  # as of a shell
