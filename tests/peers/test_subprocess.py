"""CPython's own tests of subprocess pass with ramet.Popen."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("run_subprocess.py")


@pytest.mark.skipif(
    importlib.util.find_spec("test") is None
    or importlib.util.find_spec("test.test_subprocess") is None,
    reason="this Python comes without its tests",
)
def test_subprocess(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, RUNNER],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "\nOK" in done.stderr
