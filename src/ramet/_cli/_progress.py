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
        self._shown = -1  # per cent
        self._wanted = sys.stderr.isatty()

    def step(self) -> None:
        """Count one that has been done."""
        self._done += 1
        part = 100 * self._done // self._steps
        waited = time.monotonic() - self._begun
        if self._wanted and waited > _PATIENCE and part != self._shown:
            filled = _WIDTH * self._done // self._steps
            bar = "#" * filled + "." * (_WIDTH - filled)
            sys.stderr.write(f"\r[{bar}] {part:3} %")
            sys.stderr.flush()
            self._shown = part

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown >= 0:
            sys.stderr.write("\r\033[K")  # it leaves nothing
            sys.stderr.flush()
