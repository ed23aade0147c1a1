"""The command in this process: its sandboxes write to the same descriptors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from ramet._cli import main


class Done(NamedTuple):
    """What became of a command."""

    status: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run ``ramet`` with some words."""

    def run(*words: str) -> Done:
        capfd.readouterr()
        status = main(words)
        return Done(status, *capfd.readouterr())

    return run
