"""The pool of stacks for tasks. Knows nothing of tasks."""

from __future__ import annotations

from collections import deque

from ramet._native import Stack

DEFAULT_STACK_SIZE = 256 * 1024
"""Bytes. Only pages that are touched take memory; below lies a guard page."""

# Each start needs one stack for the time of the call, so this is the number of threads that
# start children at the same moment and of running tasks that share memory, within reason. When
# there are more, the one that was given back first is unmapped.
_KEPT = 16
idle: deque[Stack] = deque(maxlen=_KEPT)
"""Stacks of the default size that nobody uses. Those of other sizes are not kept."""


def give_back(stack: Stack) -> None:
    """Take back a stack that the kernel has been seen to have let go of."""
    stack.release()
    if stack.size == DEFAULT_STACK_SIZE:
        idle.append(stack)
