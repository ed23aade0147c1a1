"""Thread: a task of our own process that runs a C function.

Knows nothing of how the task was started.
"""

from __future__ import annotations

import errno
from types import TracebackType
from typing import Self

from ramet import _orphans
from ramet._native import Stack, Task

_NANOSECONDS = 10**9


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

    def is_alive(self) -> bool:
        """Whether the thread may still run."""
        return not self._memory.released()

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
            ValueError: `timeout` is not a number.

        Source: futex(2), set_tid_address(2).
        """
        if not self._memory.join(_nanoseconds(timeout)):
            raise TimeoutError(
                errno.ETIMEDOUT, f"thread {self._pid} still runs after {timeout} seconds"
            )
        return self._memory.value()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Join the thread."""
        self.join()

    def __repr__(self) -> str:
        return f"<ramet.Thread tid={self._pid} {'alive' if self.is_alive() else 'ended'}>"

    @property
    def _memory(self) -> Stack:
        """What it runs on, from its start until this object goes."""
        if self._stack is None:
            raise ValueError("the thread was never started")
        return self._stack

    def _dropped(self, unreaped: int) -> None:  # noqa: ARG002 - as Child has it
        """Go on from where this object has been dropped; what was left is an orphan by now."""
        _orphans.sweep()


def _nanoseconds(timeout: float | None) -> int:
    """Turn seconds into what Stack.join takes: nanoseconds, or -1 for ever."""
    if timeout is None:
        return -1
    if timeout != timeout:  # noqa: PLR0124 - NaN
        raise ValueError("timeout is not a number")
    # About 146 years, half of what 64 bits hold, stand for all that is longer.
    return int(min(max(timeout, 0) * _NANOSECONDS, 2**62))
