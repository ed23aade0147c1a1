"""Thread: a task of our own process that runs a C function.

Knows nothing of how the task was started.
"""

from __future__ import annotations

import errno
from types import TracebackType
from typing import Self

from ramet import _orphans
from ramet._deadlines import check_timeout, nanoseconds
from ramet._native import Task


class Thread(Task):
    """A thread that was started by `ramet.clone` with CLONE_THREAD.

    It is joined through the word that the kernel clears, and wakes waiters on, when the thread
    has let go of its memory (CLONE_CHILD_CLEARTID). As a context manager it is joined at the end
    of the block. It may be dropped while it runs: its memory is kept until it has ended.
    """

    __slots__ = ("__weakref__",)
    _waiting = _orphans.waiting

    @property
    def tid(self) -> int:
        """The thread id, as the caller's pid namespace has it."""
        return self._pid

    @property
    def pidfd(self) -> int:
        """The thread's pidfd, if CLONE_PIDFD was given (Linux 6.9).

        Raises:
            ValueError: it was not.
        """
        if self._pidfd < 0:
            raise ValueError(f"{self!r} has no pidfd: it was started without CLONE_PIDFD")
        return self._pidfd

    def fileno(self) -> int:
        """Return the pidfd, for select, selectors and asyncio.

        Raises:
            ValueError: it was started without CLONE_PIDFD.
        """
        return self.pidfd

    def is_alive(self) -> bool:
        """Whether the thread may still run, in this process."""
        return not self._is_over()

    def join(self, timeout: float | None = None) -> int | None:
        """Wait until the thread has ended.

        Blocks in the kernel. When a signal arrives its Python handler runs and the waiting goes
        on with what is left of the time (PEP 475).

        Args:
            timeout: seconds, None for ever.

        Returns:
            What `fn` returned, or None if it ended the thread itself (by the exit system call).

        Raises:
            TimeoutError: it still runs after `timeout` seconds.
            ChildProcessError: this is a fork of the process whose thread it is.
            TypeError, ValueError: `timeout` is not a number.

        Source: futex(2), set_tid_address(2).
        """
        if not self._is_ours:
            raise ChildProcessError(
                errno.ECHILD,
                f"thread {self._pid} runs in the process that this one was forked from",
            )
        if not self._join(nanoseconds(check_timeout(timeout))):
            raise TimeoutError(
                errno.ETIMEDOUT, f"thread {self._pid} still runs after {timeout} seconds"
            )
        return self._value()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Join the thread."""
        if self._is_ours:
            self.join()

    def __repr__(self) -> str:
        return f"<ramet.Thread tid={self._pid} {'alive' if self.is_alive() else 'ended'}>"

    def _dropped(self, unreaped: int) -> None:  # noqa: ARG002 - as Child has it
        """Go on from where this object has been dropped; what was left is an orphan by now."""
        _orphans.sweep()
