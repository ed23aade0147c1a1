"""CPython's own tests pass with ramet in the place of what they are for."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("runner", "tests"),
    [("run_subprocess", "test_subprocess"), ("run_asyncio", "test_asyncio.test_subprocess")],
)
def test_peer(runner: str, tests: str, tmp_path: Path) -> None:
    try:
        found = importlib.util.find_spec(f"test.{tests}")
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip("this Python comes without its tests")
    command = [sys.executable, str(Path(__file__).with_name(f"{runner}.py"))]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "\nOK" in done.stderr
