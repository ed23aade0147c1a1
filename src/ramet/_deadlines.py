"""Timeouts in seconds, and the times by which they end."""

from __future__ import annotations

import math
import time

# poll(2) takes an int of milliseconds.
_LONGEST = 2**31 - 1


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
    if timeout is None or timeout == math.inf:
        return None
    try:
        if math.isnan(timeout):
            raise ValueError("timeout is not a number")
    except TypeError:
        kind = type(timeout).__name__
        raise TypeError(f"timeout must be a number of seconds or None, not {kind}") from None
    return max(timeout, 0)


def deadline_after(timeout: float | None) -> float | None:
    """Turn a timeout into a time of the monotonic clock; None is for ever.

    Raises:
        TypeError, ValueError: as of `check_timeout`.
    """
    seconds = check_timeout(timeout)
    return None if seconds is None else time.monotonic() + seconds


def milliseconds_until(deadline: float | None) -> int | None:
    """Say how long poll may wait, rounded up so that it does not spin before the deadline."""
    if deadline is None:
        return None
    return math.ceil(min(max(deadline - time.monotonic(), 0) * 1000, _LONGEST))
