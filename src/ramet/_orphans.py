"""Tasks that run on after their handle is gone.

Their memory is kept until the kernel says that they have let go of it, and those that are ours
to wait for are reaped: at each start of another task, as subprocess does it. Knows pidfds and
stacks, not the handles.
"""

from __future__ import annotations

import os
import select
from collections import deque

from ramet import _stacks
from ramet._native import Stack, Status, Task


class Orphan:
    """What remains to be done for one task.

    Args:
        process: the process, which passes over to this object; None for a thread.
        stack: what it may still run on.
        keep: what else it may still touch.
    """

    __slots__ = ("keep", "process", "stack")

    def __init__(self, process: Task | None, stack: Stack | None, keep: object) -> None:
        self.process = process
        self.stack = stack
        self.keep = keep

    def settle(self) -> bool:
        """Do what can be done now. True if that was all."""
        process, stack = self.process, self.stack
        if process is not None and has_exited(process):
            close(process)
            self.process = None
            if stack is not None:
                stack.release()
        if stack is not None and stack.released():
            self.stack = self.keep = None
            _stacks.give_back(stack)
        return self.process is None and self.stack is None


def has_exited(process: Task) -> bool:
    """Whether a process has ended; if its exit status is ours to collect, it is reaped."""
    if process.reap(os.WNOHANG, Status) is not None:
        return True
    return not process._waitable and is_readable(process._pidfd, 0)


def close(process: Task) -> None:
    """Close the pidfd of a process, if it is open."""
    pidfd, process._pidfd = process._pidfd, -1
    if pidfd >= 0:
        os.close(pidfd)


def is_readable(pidfd: int, milliseconds: int | None, events: int = select.POLLIN) -> bool:
    """Wait until a pidfd says that its task has exited.

    Args:
        pidfd: the descriptor.
        milliseconds: the longest to wait, None for ever.
        events: ``POLLIN`` (exited) or 0 (reaped too: ``POLLHUP``, Linux 6.9).

    Returns:
        False at the timeout.
    """
    poller = select.poll()
    poller.register(pidfd, events)
    return bool(poller.poll(milliseconds))


waiting: deque[Orphan] = deque()


def adopt(orphan: Orphan) -> None:
    """Look after a task from now on."""
    if not orphan.settle():
        waiting.append(orphan)


def sweep() -> None:
    """Settle what can be settled. Never blocks."""
    for _ in range(len(waiting)):
        try:
            orphan = waiting.popleft()
        except IndexError:  # another thread sweeps too
            return
        if not orphan.settle():
            waiting.append(orphan)


def _after_fork_in_child() -> None:
    # Not our children. What they run on is a copy here, and stays mapped.
    for orphan in waiting:
        if orphan.process is not None:
            close(orphan.process)
    waiting.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
