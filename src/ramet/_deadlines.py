"""Timeouts in seconds, and the times by which they end."""

from __future__ import annotations

import math
import time

_NANOSECONDS = 10**9
_LONGEST = 2**62  # nanoseconds, about 146 years; stands for all that is longer


def check_timeout(timeout: float | None) -> float | None:
    """Check a timeout.

    Args:
        timeout: seconds, None or inf for ever.

    Returns:
        Seconds, at least 0; None for ever.

    Raises:
        TypeError: not a number.
        ValueError: NaN.
    """
    if timeout is None:
        return None
    if isinstance(timeout, str | bytes) or not hasattr(type(timeout), "__float__"):
        kind = type(timeout).__name__
        raise TypeError(f"timeout must be a number of seconds or None, not {kind}")
    try:
        seconds = float(timeout)
    except OverflowError:
        seconds = math.inf
    if math.isnan(seconds):
        raise ValueError("timeout is not a number")
    return None if seconds == math.inf else max(seconds, 0.0)


def deadline_after(timeout: float | None) -> float | None:
    """Turn a timeout into a time of the monotonic clock; None is for ever.

    Raises:
        TypeError, ValueError: as of `check_timeout`.
    """
    seconds = check_timeout(timeout)
    return None if seconds is None else time.monotonic() + seconds


def nanoseconds(seconds: float | None) -> int:
    """Turn checked seconds into what the methods of Task take: nanoseconds, or -1 for ever."""
    return -1 if seconds is None else int(min(max(seconds, 0) * _NANOSECONDS, _LONGEST))


def nanoseconds_until(deadline: float | None) -> int:
    """Say how long it is to a deadline, as `nanoseconds`; 0 when it has passed."""
    return nanoseconds(None if deadline is None else deadline - time.monotonic())
