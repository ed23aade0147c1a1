"""Programs in sandboxes, and the verdicts about them."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import ramet
from ramet import ExitStatus
from ramet.sandbox import Bind, Overlay, ProtectionError, Sandbox
from ramet.sandbox._presets import system_files
from ramet.sandbox._root import Entry
from ramet.sandbox._run import Watched

SYSTEM = Sandbox(system=True)
FOR_EVER = ["sleep", "1000"]


def test_what_it_writes() -> None:
    verdict = SYSTEM.run(["sh", "-c", "cat; echo bad >&2; exit 3"], b"read")
    assert (verdict.reason, verdict.exit_code, verdict.shell_status) == ("exited", 3, 3)
    assert (verdict.stdout, verdict.stderr) == (b"read", b"bad\n")
    assert not verdict.ok
    assert verdict.peak_memory


def test_a_signal() -> None:
    verdict = SYSTEM.run(["sh", "-c", "kill -9 $$"])
    assert (verdict.reason, verdict.signal, verdict.shell_status) == ("signalled", 9, 137)


def test_what_cannot_be_executed() -> None:
    verdict = SYSTEM.run(["/etc/passwd"])
    assert (verdict.reason, verdict.errno) == ("start_failed", errno.EACCES)
    assert verdict.shell_status == 126


def test_no_such_program() -> None:
    verdict = SYSTEM.run(["no-such-program"])
    assert (verdict.reason, verdict.errno) == ("start_failed", errno.ENOENT)
    assert verdict.shell_status == 127
    assert verdict.error is not None
    assert "no-such-program" in verdict.error
    assert {line.state for line in verdict.receipt} == {"planned"}


@pytest.mark.parametrize(
    ("reason", "policy", "script"),
    [
        ("timeout", {"wall_time": 0.2}, "sleep 1000"),
        ("output", {"output_size": 1000}, "yes"),
        ("cpu", {"cpu_time": 0.2}, "while :; do :; done"),
    ],
)
def test_limits(reason: str, policy: dict[str, Any], script: str) -> None:
    verdict = Sandbox(system=True, **policy).run(["sh", "-c", script])
    assert verdict.reason == reason
    assert verdict.shell_status == 124
    assert len(verdict.stdout) <= 1000
    assert verdict.stdout_truncated == (reason == "output")


@pytest.mark.parametrize(
    ("limit", "number", "used", "reason"),
    [
        (1, signal.SIGXCPU, 0.9, "cpu"),  # the kernel counts ticks
        (1, signal.SIGXCPU, 0.1, "signalled"),
        (1, signal.SIGKILL, 2.0, "cpu"),
        (1, signal.SIGKILL, 0.9, "signalled"),
        (1, signal.SIGTERM, 2.0, "signalled"),
        (None, signal.SIGXCPU, 0.9, "signalled"),
    ],
)
def test_what_ends_at_a_limit(limit: int | None, number: int, used: float, reason: str) -> None:
    box = Sandbox(cpu_time=limit)
    watched = Watched(box, box._plan(), os.getpid(), None)
    assert watched._reason(None, ExitStatus(os.CLD_KILLED, number), used) == reason


def test_memory_without_a_cgroup() -> None:
    """It is refused, or watched from outside if that is allowed; never passed over."""
    code = "x = b'x' * 300_000_000; import time; time.sleep(1000)"
    limited = Sandbox(python=True, memory=100 << 20, optional=["memory", "swap"])
    verdict = limited.run([sys.executable, "-I", "-S", "-c", code])
    assert verdict.reason == "memory"
    state = {line.name: line.state for line in verdict.receipt}["memory"]
    if state == "degraded":
        with pytest.raises(ProtectionError, match="memory cannot be enforced"):
            Sandbox(python=True, memory=100 << 20).run(["true"])


def test_processes() -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait"
    verdict = Sandbox(system=True, processes=5).run(["sh", "-c", script])
    assert b"fork" in verdict.stderr


def test_files_of_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("ours")
    files: dict[str, Entry] = {"/over": Overlay(tmp_path), "/read": Bind(tmp_path)}
    script = "cat /over/file /read/file && ! touch /read/new 2>/dev/null && ls /etc/shadow"
    verdict = Sandbox(system=True, files=files).run(["sh", "-c", script])
    assert verdict.stdout == b"oursours"
    assert verdict.exit_code != 0
    assert b"/etc/shadow" in verdict.stderr


def test_any_number_for_a_descriptor() -> None:
    """What is opened on the way has numbers, too, and does not get in the way of it."""
    box = Sandbox(files=system_files())
    with open(os.devnull, "wb") as file:
        for number in range(3, 30):
            verdict = box.run(["true"], fds={number: file})
            assert verdict.ok, (number, verdict)


def test_popen() -> None:
    with SYSTEM.popen(["sh", "-c", "echo hi; exit 3"], stdout=-1, text=True) as process:
        assert process.communicate() == ("hi\n", None)
    assert process.returncode == 3
    with SYSTEM.popen(FOR_EVER) as process:
        process.kill()
    assert process.returncode == -9


def test_run_async() -> None:
    async def cancelled() -> None:
        await asyncio.wait_for(SYSTEM.run_async(FOR_EVER), 0.2)

    assert asyncio.run(SYSTEM.run_async(["echo", "hi"])).stdout == b"hi\n"
    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())


def test_a_policy_pickles() -> None:
    assert pickle.loads(pickle.dumps(SYSTEM)) == SYSTEM == ramet.Sandbox(system=True)  # noqa: S301
