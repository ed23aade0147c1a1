"""CPython's own tests pass with ramet in the place of what they are for."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers.run import TESTS


@pytest.mark.parametrize("peer", TESTS)
def test_peer(peer: str, tmp_path: Path) -> None:
    try:
        found = importlib.util.find_spec(TESTS[peer])
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip("this Python comes without its tests")
    command = [sys.executable, str(Path(__file__).with_name("run.py")), peer]
    if os.environ.get("RAMET_PEERS") != "all":
        command.append("--short")  # make test-peers runs the rest
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "\nOK" in done.stderr
