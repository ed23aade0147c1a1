"""Untrusted programs and Python in sandboxes, and what became of them.

    python examples/sandboxing.py

It needs neither privileges nor a cgroup of its own, and says what it has to do without. Where there
can be no sandbox it says why, and exits with 1.
"""

from __future__ import annotations

import statistics
import sys

from ramet import Sandbox
from ramet.sandbox import CallError, ProtectionError, Verdict

# Without a cgroup memory is watched from outside. Old kernels have no Landlock.
OPTIONAL = ("memory", "swap", "landlock")

HOG = """
import time
kept = []
while True:
    kept.append(b"x" * (1 << 20))
    time.sleep(0.001)
"""

ESCAPE = """
import ctypes, os, socket

libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)

attempts = {
    "read a file of the host": lambda: open("/etc/shadow"),
    "write to the interpreter": lambda: open(os.__file__, "w"),
    "mount": lambda: call("mount", b"proc", b"/tmp", b"proc", 0, None),
    "leave by chroot": lambda: os.chroot("/tmp"),
    "trace a process": lambda: call("ptrace", 16, 1, 0, 0),
    "connect": lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
}
refused = {}
for name, attempt in attempts.items():
    try:
        attempt()
    except OSError as error:
        refused[name] = os.strerror(error.errno)
    else:
        refused[name] = "IT WORKED"
refused
"""


def show(verdict: Verdict) -> None:
    """Show output and verdict; if there was no sandbox, that is the end of it."""
    if verdict.reason == "start_failed":
        sys.exit(f"There can be no sandbox here: {verdict.error}")
    for line in (verdict.stdout + verdict.stderr).decode().splitlines():
        print(f"  {line}")
    ended = f"exit code {verdict.exit_code}" if verdict.signal is None else "killed"
    peak = "unknown" if verdict.peak_memory is None else f"{verdict.peak_memory >> 20} MiB"
    print(f"  verdict: {verdict.reason}, {ended}, {verdict.wall_time:.3f} s, peak {peak}")


def protections(sandbox: Sandbox) -> None:
    """Say what holds, and what does not."""
    print("What is enforced for Python:")
    print(f"  {', '.join(p.name for p in sandbox.receipt if p.state == 'applied')}")
    for line in sandbox.receipt:
        if line.state == "degraded":
            print(f"  not, or in part: {line.name}: {line.how}")


def a_program() -> None:
    """Run a shell that sees the system's programs, and nothing of this user."""
    print("A program:")
    script = 'echo "user $(id -u), host $(hostname), process $$"; ls /home'
    show(Sandbox(system=True, optional=OPTIONAL).run(["sh", "-c", script]))


def a_function(sandbox: Sandbox) -> None:
    """Call a Python function, and run Python source."""
    print("A Python function:")
    line = sandbox.call(statistics.linear_regression, [1, 2, 3], [2, 4, 6])
    print(f"  it has returned {line}")
    verdict = sandbox.run_python("import os; {'n': n, 'process': os.getpid()}", {"n": 42})
    print(f"  and source has the value {verdict.value}")
    show(verdict)


def a_timeout(sandbox: Sandbox) -> None:
    """End what takes too long."""
    print("A timeout:")
    show(sandbox.run_python("while True: pass", timeout=0.2))


def a_memory_kill(sandbox: Sandbox) -> None:
    """End what uses too much memory."""
    states = {line.name: line.state for line in sandbox.receipt}
    how = "by its cgroup" if states["memory"] == "applied" else "watched from outside"
    print(f"Too much memory (it may have {(sandbox.memory or 0) >> 20} MiB, {how}):")
    show(sandbox.run_python(HOG))


def an_escape(sandbox: Sandbox) -> None:
    """Try to get out."""
    print("An escape:")
    verdict = sandbox.run_python(ESCAPE)
    for attempt, outcome in (verdict.value or {}).items():
        print(f"  {attempt}: {outcome}")
    show(verdict)


def main() -> None:
    """Show it all."""
    policy = Sandbox(
        python=True,
        preload=["statistics"],
        memory=64 << 20,
        processes=20,
        wall_time=60,
        optional=OPTIONAL,
    )
    with policy as sandbox:
        a_program()
        protections(sandbox)
        a_function(sandbox)
        a_timeout(sandbox)
        a_memory_kill(sandbox)
        an_escape(sandbox)


if __name__ == "__main__":
    try:
        main()
    except (ProtectionError, CallError, OSError) as error:
        sys.exit(f"There can be no sandbox here: {error}")
