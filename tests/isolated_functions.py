"""Functions that are isolated, in a module that is quick to import."""

from __future__ import annotations

import os
import time

from ramet import isolated
from tests.functions import add


@isolated(main=False)
def family(*others: int, last: int = 0) -> tuple[int, int, tuple[int, ...]]:
    """Say who we are."""
    return os.getpid(), os.getppid(), (*others, last)


@isolated(main=False, timeout=1)
def slow(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@isolated(main=False)
def depth(levels: int) -> list[int]:
    return [os.getpid(), *(depth(levels - 1) if levels else [])]


class Machine:
    """With methods that are isolated."""

    def __init__(self, number: int) -> None:
        self.number = number

    @isolated(main=False)
    def added(self, more: int) -> tuple[int, int]:
        return self.number + more, os.getpid()

    @staticmethod
    @isolated(main=False)
    def alone(number: int) -> tuple[int, int]:
        return number, os.getpid()


isolated_add = isolated(add, main=False)
