"""The stacks that tasks run on, by default. Knows nothing of tasks."""

from __future__ import annotations

from ramet._native import Pool

DEFAULT_STACK_SIZE = 256 * 1024
"""Bytes. Only pages that are touched take memory; below lies a guard page."""

pool = Pool(DEFAULT_STACK_SIZE, 16)
"""Stacks of the default size, with those that are kept for the next task. Those of other sizes
are unmapped when the kernel has been seen to have let go of them."""
