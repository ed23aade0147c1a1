"""A progress bar on stderr, if that is a terminal and there is something to wait for."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

_PATIENCE = 0.5  # seconds before it appears
_WIDTH = 40


class Progress:
    """Counts steps, and shows how many there are still to come."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done = 0
        self._begun = time.monotonic()
        self._shown = False
        self._wanted = sys.stderr.isatty()

    def step(self) -> None:
        """Count one that has been done."""
        self._done += 1
        if self._wanted and time.monotonic() - self._begun > _PATIENCE:
            filled = _WIDTH * self._done // self._steps
            bar = "#" * filled + "." * (_WIDTH - filled)
            sys.stderr.write(f"\r[{bar}] {100 * self._done // self._steps:3} %")
            sys.stderr.flush()
            self._shown = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")  # it leaves nothing
            sys.stderr.flush()
