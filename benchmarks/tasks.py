"""What benchmarks/functions.py has children do; of a module that is cheap to import."""

from __future__ import annotations


def nothing() -> None:
    """Do nothing."""


def product() -> float:
    """Multiply two matrices."""
    import numpy as np  # noqa: PLC0415 - it is preloaded where that is to be had

    ones = np.ones((64, 64))
    return float((ones @ ones).sum())
