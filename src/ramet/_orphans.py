"""Tasks that run on after their handle is gone.

Their memory is kept until the kernel says that they have let go of it, and those that are ours
to wait for are reaped: at each start of another task, as subprocess does it. Knows pidfds and
stacks, not the handles.
"""

from __future__ import annotations

import atexit
import os
from collections import deque
from contextlib import suppress
from select import POLLIN

from ramet._native import Status, Task, after_fork

waiting: deque[Task] = deque()
"""What is left of the tasks: what they run on, and their pidfds. One that is in here stays until
it is settled, wherever a signal handler may raise."""


# How many are looked at in one go, so that a start takes no longer when many are waiting.
_AT_ONCE = 16


def sweep() -> None:
    """Settle what can be settled, of those that have not been looked at for the longest time.

    Never blocks.
    """
    for _ in range(min(len(waiting), _AT_ONCE)):
        with suppress(IndexError, ValueError):  # another thread was quicker
            task = waiting[0]
            waiting.rotate(-1)
            if _settle(task):
                waiting.remove(task)


def _settle(task: Task) -> bool:
    """Do for a task what can be done now. True if that was all."""
    if task._pidfd >= 0 and _has_exited(task):
        task._release()
        task._close_pidfd()
    return task._let_go() and task._pidfd < 0


def _has_exited(task: Task) -> bool:
    """Whether a task has ended; if its exit status is ours to collect, it is reaped."""
    if task._reap(os.WNOHANG, Status) is not None:
        return True
    return not task._waitable and task._readable(0, POLLIN)


def _after_fork_in_child() -> None:
    after_fork()
    # Not our children. What they run on is a copy here, and stays mapped.
    for task in waiting:
        task._close_pidfd()
    waiting.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(sweep)  # also at the end of a subinterpreter, which no later start follows
