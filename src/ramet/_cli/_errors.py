"""What the commands fail with, and how that is said."""

from __future__ import annotations

FAILED = 125
"""The exit status if ramet itself fails, as of env(1) and timeout(1)."""


class CommandError(Exception):
    """A command line that asks for what cannot be done."""


def reason(error: BaseException) -> str:
    """Put an error into one line."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())
