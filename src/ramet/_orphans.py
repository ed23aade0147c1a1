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
from ramet._native import Stack, waitid

WALL = 0x4000_0000
"""``__WALL`` of <linux/wait.h>: children with any exit signal, or none."""

generation = 0
"""How many forks lie between the first process and this one. A task is a child of the process
that started it only."""


class Orphan:
    """What remains to be done for one task.

    Parameters:
        pidfd: its pidfd, which passes over to this object, or -1.
        waitable: whether its exit status is ours to collect.
        stack: what it may still run on.
        keep: what else it may still touch.
    """

    __slots__ = ("keep", "pidfd", "stack", "waitable")

    def __init__(self, pidfd: int, waitable: bool, stack: Stack | None, keep: object) -> None:
        self.pidfd = pidfd
        self.waitable = waitable
        self.stack = stack
        self.keep = keep

    def settle(self) -> bool:
        """Do what can be done now. True if that was all."""
        if self.pidfd >= 0 and self._has_exited():
            os.close(self.pidfd)
            self.pidfd = -1
            if self.stack is not None:
                self.stack.release()
        if self.stack is not None and self.stack.released():
            _stacks.give_back(self.stack)
            self.stack = self.keep = None
        return self.pidfd < 0 and self.stack is None

    def _has_exited(self) -> bool:
        if self.waitable:
            try:
                options = os.WEXITED | os.WNOHANG | WALL
                return waitid(os.P_PIDFD, self.pidfd, options) is not None
            except ChildProcessError:  # reaped by someone else
                self.waitable = False
        return is_readable(self.pidfd, 0)


def is_readable(pidfd: int, milliseconds: int | None, events: int = select.POLLIN) -> bool:
    """Wait until a pidfd says that its task has exited.

    Parameters:
        pidfd: the descriptor.
        milliseconds: the longest to wait, None for ever.
        events: ``POLLIN`` (exited) or 0 (reaped too: ``POLLHUP``, Linux 6.9).

    Returns:
        False at the timeout.
    """
    poller = select.poll()
    poller.register(pidfd, events)
    return bool(poller.poll(milliseconds))


_orphans: deque[Orphan] = deque()


def adopt(orphan: Orphan) -> None:
    """Look after a task from now on."""
    if not orphan.settle():
        _orphans.append(orphan)


def sweep() -> None:
    """Settle what can be settled. Never blocks."""
    for _ in range(len(_orphans)):
        try:
            orphan = _orphans.popleft()
        except IndexError:  # another thread sweeps too
            return
        if not orphan.settle():
            _orphans.append(orphan)


def _after_fork_in_child() -> None:
    global generation  # noqa: PLW0603 - one counter per interpreter, changed only here
    generation += 1
    # Not our children. What they run on is a copy here, and stays mapped.
    for orphan in _orphans:
        if orphan.pidfd >= 0:
            os.close(orphan.pidfd)
    _orphans.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
