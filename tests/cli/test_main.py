"""``ramet`` itself, and how it is called."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from ramet._cli import _COMMANDS
from tests.cli.conftest import Command


def test_help(command: Command) -> None:
    done = command("--help")
    assert done.status == 0
    assert all(f"  {name} " in done.stdout for name in _COMMANDS)


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_of_commands(command: Command, name: str) -> None:
    done = command(name, "--help")
    assert done.status == 0
    assert done.stdout.startswith(f"usage: ramet {name}")
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


def test_no_command(command: Command) -> None:
    done = command()
    assert (done.status, done.stdout) == (125, "")
    assert "usage: ramet COMMAND" in done.stderr
    assert command("fly").stderr == "ramet: there is no command 'fly'\n"


def test_version(command: Command) -> None:
    version = importlib.metadata.version("ramet")
    assert command("--version").stdout == f"ramet {version}\n"


def test_entry_point() -> None:
    (entry,) = (
        each
        for each in importlib.metadata.distribution("ramet").entry_points
        if each.group == "console_scripts"
    )
    assert entry.name == "ramet"
    script = Path(sys.executable).with_name("ramet")
    assert subprocess.run([script, "run", "--", "true"], check=False).returncode == 0


def test_a_reader_that_goes_away() -> None:
    args = f"{sys.executable} -m ramet explain | head -1"
    done = subprocess.run(args, shell=True, capture_output=True, text=True, check=True)  # noqa: S602
    assert done.stdout == "What is enforced:\n"
    assert done.stderr == ""
