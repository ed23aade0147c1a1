"""``ramet bench``, and the progress bar."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from ramet._cli import _progress
from ramet._cli._progress import Progress
from tests.cli.conftest import Command

BENCH = [sys.executable, "-m", "ramet", "bench", "--turns", "2"]


def test_table() -> None:
    done = subprocess.run([*BENCH, "--resident", "1M"], capture_output=True, text=True, check=True)
    rows = {line[:32].strip(): line[32:].split() for line in done.stdout.splitlines()}
    for name in ("ramet.clone", "os.fork", "ramet.spawn", "subprocess.run", "ramet.Sandbox"):
        median, unit, least, *_ = rows[name]
        assert float(median) >= float(least) > 0
        assert unit == "ms"
    assert done.stderr == ""


def test_json() -> None:
    done = subprocess.run([*BENCH, "--json"], capture_output=True, text=True, check=True)
    assert {len(values) for values in json.loads(done.stdout).values()} == {2}


@pytest.mark.parametrize("options", [["--turns", "0"], ["--turns", "x"], ["--resident", "x"]])
def test_mistakes(command: Command, options: list[str]) -> None:
    done = command("bench", *options)
    assert done.status == 125
    assert done.stderr.startswith("ramet bench: ")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("patience", "shown"), [(-1.0, True), (100.0, False)])
def test_progress(monkeypatch: pytest.MonkeyPatch, patience: float, shown: bool) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(_progress, "_PATIENCE", patience)
    with Progress(2) as progress:
        progress.step()
        assert (" 50 %" in terminal.getvalue()) == shown
        progress.step()
    assert terminal.getvalue().endswith("\033[K") == shown
