"""Thread: a task of our own process that runs a C function.

Knows nothing of how the task was started.
"""

from __future__ import annotations

import errno
import os
from types import TracebackType

from ramet import _orphans, _stacks
from ramet._native import Stack
from ramet._orphans import Orphan

_NANOSECONDS = 10**9


class Thread:
    """A thread that was started by `ramet.clone` with CLONE_THREAD.

    It is joined through the word that the kernel clears, and wakes waiters on, when the thread
    has let go of its memory (CLONE_CHILD_CLEARTID). As a context manager it is joined at the end
    of the block. It may be dropped while it runs: its memory is kept until it has ended.
    """

    __slots__ = ("__weakref__", "_keep", "_pidfd", "_stack", "_tid")

    def __init__(self, stack: Stack, keep: object) -> None:
        """Make the handle of a thread that is about to be started; users call `ramet.clone`.

        Parameters:
            stack: what it is to run on.
            keep: what else it may touch.
        """
        self._tid = 0
        self._pidfd = -1
        self._stack = stack
        self._keep = keep

    def _born(self, stack: Stack, keep: object) -> None:  # noqa: ARG002 - as Child has it
        """Take over the thread that was started. May be called again."""
        self._pidfd = stack.pidfd
        self._tid = stack.pid

    def _abandon(self) -> None:
        """Give up the handle, the thread if there is one goes on: __del__ does all."""

    @property
    def tid(self) -> int:
        """The thread id, as the caller's pid namespace has it."""
        return self._tid

    @property
    def pidfd(self) -> int:
        """The thread's pidfd, if CLONE_PIDFD was given (Linux 6.9).

        Raises:
            ValueError: it was not.
        """
        if self._pidfd < 0:
            raise ValueError(f"{self!r} has no pidfd: it was started without CLONE_PIDFD")
        return self._pidfd

    def is_alive(self) -> bool:
        """Whether the thread may still run."""
        return not self._stack.released()

    def join(self, timeout: float | None = None) -> int | None:
        """Wait until the thread has ended.

        Blocks in the kernel. When a signal arrives its Python handler runs and the waiting goes
        on with what is left of the time (PEP 475).

        Parameters:
            timeout: seconds, None for ever.

        Returns:
            What `fn` returned, or None if it ended the thread itself (by the exit system call).

        Raises:
            TimeoutError: it still runs after `timeout` seconds.
            ValueError: `timeout` is not a number.

        Source: futex(2), set_tid_address(2).
        """
        if not self._stack.join(_nanoseconds(timeout)):
            raise TimeoutError(
                errno.ETIMEDOUT, f"thread {self._tid} still runs after {timeout} seconds"
            )
        return self._stack.value()

    def __enter__(self) -> Thread:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Join the thread."""
        self.join()

    def __del__(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        if self._tid == 0:  # never started, the stack is not ours
            return
        if self._stack.released():
            _stacks.give_back(self._stack)
        else:
            _orphans.adopt(Orphan(-1, False, self._stack, self._keep))

    def __repr__(self) -> str:
        return f"<ramet.Thread tid={self._tid} {'alive' if self.is_alive() else 'ended'}>"


def _nanoseconds(timeout: float | None) -> int:
    """Turn seconds into what Stack.join takes: nanoseconds, or -1 for ever."""
    if timeout is None:
        return -1
    if timeout != timeout:  # noqa: PLR0124 - NaN
        raise ValueError("timeout is not a number")
    # About 146 years, half of what 64 bits hold, stand for all that is longer.
    return int(min(max(timeout, 0) * _NANOSECONDS, 2**62))
