"""Child and ExitStatus: waiting for a process, and signalling it, by its pidfd.

Knows nothing of how the process was started.
"""

from __future__ import annotations

import errno
import os
import resource
import struct
import time
import warnings
from select import POLLIN
from signal import SIGKILL, SIGTERM, Signals
from types import TracebackType
from typing import Self

from ramet import _orphans
from ramet._deadlines import deadline_after, nanoseconds_until
from ramet._flags import CloneFlags
from ramet._native import Status, Task

# struct rusage: two timevals and fourteen longs (getrusage(2)).
_RUSAGE = struct.Struct("18l")


class ExitStatus(Status):
    """How a process ended, and what it used.

    Compares by how the process ended, not by what it used.
    """

    __slots__ = ()

    @property
    def code(self) -> int | None:
        """The exit code, 0 to 255. None if a signal ended the process."""
        return self._status if self._code == os.CLD_EXITED else None

    @property
    def signal(self) -> int | None:
        """The number of the signal that ended the process. None if it exited."""
        return None if self._code == os.CLD_EXITED else self._status

    @property
    def core_dumped(self) -> bool:
        """Whether the signal left a core dump."""
        return self._code == os.CLD_DUMPED

    @property
    def rusage(self) -> resource.struct_rusage | None:
        """What the process and the children it waited for used, as getrusage(2) has it.

        None where the kernel told the status only: the process was not ours to wait for.
        ``ru_maxrss`` (KiB) of a child that shared its parent's memory is the parent's.
        """
        raw = self._rusage
        if raw is None:
            return None
        seconds, micros, system_seconds, system_micros, *counts = _RUSAGE.unpack(raw)
        times = (seconds + micros / 1e6, system_seconds + system_micros / 1e6)
        return resource.struct_rusage((*times, *counts))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExitStatus):
            return NotImplemented
        return (self._code, self._status) == (other._code, other._status)

    def __hash__(self) -> int:
        return hash((self._code, self._status))

    def __reduce__(self) -> tuple[type[ExitStatus], tuple[int, int, bytes | None]]:
        return ExitStatus, (self._code, self._status, self._rusage)

    def __repr__(self) -> str:
        return f"<ramet.ExitStatus {self._words()}>"

    def _words(self) -> str:
        if self.signal is None:
            return f"exited with {self.code}"
        try:
            name = Signals(self.signal).name
        except ValueError:  # a real-time signal
            name = f"signal {self.signal}"
        return f"killed by {name}" + (", core dumped" if self.core_dumped else "")


class Child(Task):
    """A process that was started by `ramet.clone`.

    All goes through the pidfd that the process was born with, so that no other process can be
    meant, whatever became of the pid. A Child can be used by several threads. As a context
    manager it is waited for at the end of the block. One that is dropped before it was waited
    for gives a ResourceWarning; it is then reaped at a later start of another.
    """

    __slots__ = ("__weakref__",)
    _waiting = _orphans.waiting

    @property
    def pid(self) -> int:
        """The process id, as the caller's pid namespace has it."""
        return self._pid

    @property
    def pidfd(self) -> int:
        """The pidfd: readable when the process has exited (pidfd_open(2)).

        Raises:
            ValueError: after `close`.
        """
        if self._pidfd < 0:
            raise ValueError(f"{self!r} is closed")
        return self._pidfd

    def fileno(self) -> int:
        """Return the pidfd, for select, selectors and asyncio.

        Raises:
            ValueError: after `close`.
        """
        return self.pidfd

    def poll(self) -> ExitStatus | None:
        """Collect the exit status if the process has ended; never blocks.

        Returns:
            The status, or None while the process runs.

        Raises:
            ChildProcessError: the status went to someone else, see `wait`.
            ValueError: closed before it was waited for.
        """
        return self._poll(patience=0)

    def wait(self, timeout: float | None = None) -> ExitStatus:
        """Wait until the process has ended.

        Blocks in the kernel. When a signal arrives its Python handler runs and the waiting goes
        on with what is left of the time (PEP 475). Children with any exit signal, and with
        none, are waited for.

        Args:
            timeout: seconds, None for ever.

        Returns:
            How it ended, and what it used. The same again if called again.

        Raises:
            TimeoutError: it still runs after `timeout` seconds.
            ChildProcessError: the process has ended and its status went to someone else: it was
                started with CLONE_PARENT, SIGCHLD is ignored, or another wait was quicker, and
                the kernel does not tell what became of it (it does from Linux 6.15 on, but for
                a process that its parent has yet to reap). Also in a fork of the process that
                started it.
            TypeError, ValueError: `timeout` is not a number.
            ValueError: closed before it was waited for.

        Source: waitid(2), pidfd_open(2).
        """
        if timeout is None:
            status = self._reap(0, ExitStatus)
            if status is not None:
                return status
        deadline = deadline_after(timeout)
        while (status := self._poll(_REAPED_SOON)) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"pid {self._pid} still runs after {timeout} seconds"
                )
            self._readable(nanoseconds_until(deadline), POLLIN)
        return status

    def send_signal(self, signal: int) -> None:
        """Send a signal. Nothing happens if the process has ended.

        Args:
            signal: its number.

        Raises:
            PermissionError: the process has other credentials by now.
            OSError: EINVAL: there is no such signal.
            ValueError: closed.

        Source: pidfd_send_signal(2).
        """
        if self._status is not None:
            return
        error = self._send_signal(signal)
        if error == errno.EBADF:
            raise ValueError(f"{self!r} is closed")
        if error not in {0, errno.ESRCH}:
            raise OSError(
                error,
                f"{os.strerror(error)}: pidfd_send_signal(pidfd of {self._pid}, {signal})",
            )

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(SIGKILL)

    def close(self) -> None:
        """Let go of the process: close the pidfd.

        A process that still runs goes on, is no longer waited for here and gives no warning; its
        memory is kept and its end collected behind the scenes. One that was started with
        CLONE_PIDFD_AUTOKILL is killed by this. While another thread waits for it, the pidfd
        stays open until that is done.
        """
        if self._flags & _AUTOKILL and self._pidfd >= 0 and self._is_ours:
            self.kill()  # as closing the pidfd would, of which its memory may have need yet
        self._detach()
        _orphans.sweep()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the process, then close the pidfd."""
        if self._pidfd >= 0:
            try:
                self.wait()
            finally:
                self.close()

    def __repr__(self) -> str:
        if self._status is not None:
            state = self._status._words()
        elif self._pidfd < 0:
            state = "closed"
        else:
            state = "not waited for yet"
        return f"<ramet.Child pid={self._pid} {state}>"

    # --- the kernel's side --------------------------------------------------------------------

    def _poll(self, patience: int) -> ExitStatus | None:
        """Collect the exit status, waiting at most `patience` ns for others to reap."""
        status = self._reap(os.WNOHANG, ExitStatus)
        if status is not None:
            return status
        if self._pidfd < 0:
            raise ValueError(f"{self!r} was closed before it was waited for")
        if not self._is_ours:
            raise self._lost("it is a child of the process that this one was forked from")
        if self._waitable or not self._readable(0, POLLIN):
            return None
        return self._ask_pidfd(patience)

    def _lost(self, reason: str) -> ChildProcessError:
        text = f"{os.strerror(errno.ECHILD)}: the exit status of pid {self._pid} is not to be had"
        return ChildProcessError(errno.ECHILD, f"{text}: {reason}")

    def _ask_pidfd(self, patience: int) -> ExitStatus | None:
        """Find the status of a process that has exited and is, or will be, reaped by others."""
        if self._flags & CloneFlags.PARENT:
            patience = 0
            reason = "it goes to the parent that it has by CLONE_PARENT"
        else:
            reason = "it went to another wait, or to nobody since SIGCHLD is ignored"
        try:
            wait_status = exit_info(self)
            if wait_status is None and self._readable(patience, 0):
                wait_status = exit_info(self)
        except OSError as error:
            if error.errno in _NOT_TOLD:
                raise self._lost(reason) from None
            raise
        if wait_status is None:
            if patience == 0 and not self._flags & CloneFlags.PARENT:
                return None  # will be reaped in a moment
            raise self._lost(reason)
        if os.WIFEXITED(wait_status):
            status = ExitStatus(os.CLD_EXITED, os.WEXITSTATUS(wait_status))
        else:
            code = os.CLD_DUMPED if os.WCOREDUMP(wait_status) else os.CLD_KILLED
            status = ExitStatus(code, os.WTERMSIG(wait_status))
        return self._settle(status)

    def _dropped(self, unreaped: int) -> None:
        """Go on from where this object has been dropped; what was left is an orphan by now."""
        _orphans.sweep()
        if unreaped and not self._quiet:
            text = f"<ramet.Child pid={self._pid}> was not waited for"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)


_AUTOKILL = int(CloneFlags.PIDFD_AUTOKILL)


# --- PIDFD_GET_INFO (linux/pidfd.h) -------------------------------------------------------------

_INFO = struct.Struct("=QQ11Ii")
_INFO_EXIT = 1 << 3
_GET_INFO = 0xC000_FF0B | _INFO.size << 16
# ENOTTY, EINVAL: no such request before Linux 6.13; ESRCH: reaped and, before 6.15, forgotten.
_NOT_TOLD = {errno.ENOTTY, errno.EINVAL, errno.ESRCH}
# Nanoseconds that the kernel may take to reap what nobody waits for, once it has exited.
_REAPED_SOON = 10**9


def exit_info(task: Task) -> int | None:
    """Ask for the wait status of a process that somebody else reaped (Linux 6.15).

    Args:
        task: a process that has exited.

    Returns:
        The status as wait(2) gives it, or None if it was not reaped yet.

    Raises:
        OSError: the kernel does not tell.
    """
    request = bytearray(_INFO.pack(_INFO_EXIT, *[0] * 13))
    error = task._ioctl(_GET_INFO, request)
    if error:
        raise OSError(error, os.strerror(error))
    mask, *_, wait_status = _INFO.unpack(request)
    return int(wait_status) if mask & _INFO_EXIT else None
