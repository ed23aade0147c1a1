"""What /proc tells of the processes of a sandbox."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import ramet
from ramet.sandbox import Sandbox
from ramet.sandbox._tree import Sample, is_visible, sample
from tests.waiting import until

if not is_visible():
    pytest.skip("/proc has no children (CONFIG_PROC_CHILDREN)", allow_module_level=True)

SHELL = Sandbox(system=True)
PYTHON = Sandbox(python=True)
MIB = 1 << 20
NAMES = [b"a b", b"x) R 1 2 3", b"\xff\n\t", b"NSpid:\t1"]


@contextmanager
def running(sandbox: Sandbox, *args: str) -> Iterator[int]:
    """A program that has written a line; its sandbox's first process."""
    with sandbox.popen(args, stdout=-1) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-I", "-S", "-c", code


def test_memory_of_all_together() -> None:
    """The sum is that of all processes, wherever they are in the tree."""
    code = (
        f"import os; size = {30 * MIB}; data = b'x' * size\n"
        "gate = os.pipe()\n"
        "for _ in range(2):\n"
        "    if os.fork() == 0:\n"
        "        data = b'y' * size\n"
        "        if os.fork() == 0: data = b'z' * size\n"
        "        os.write(gate[1], b'x')\n"
        "        os.read(0, 1)\n"
        "for _ in range(4): os.read(gate[0], 1)\n"
        "print('ready', flush=True); os.read(0, 1)\n"
    )
    reader, writer = os.pipe()
    with PYTHON.popen(python(code), stdin=reader, stdout=-1) as process:
        os.close(reader)
        assert process.stdout is not None
        process.stdout.readline()
        found = sample(process.pid)
        process.kill()
    os.close(writer)
    assert found.memory > 5 * 30 * MIB
    assert 30 * MIB < found.largest < 3 * 30 * MIB


def test_shared_memory_counts() -> None:
    """Also what is in no process's own memory, such as a memory file that it has mapped."""
    code = (
        "import mmap, os, time\n"
        f"file = os.memfd_create('x'); os.ftruncate(file, {30 * MIB})\n"
        f"shared = mmap.mmap(file, {30 * MIB}); shared.write(b'x' * {30 * MIB})\n"
        "print('ready', flush=True); time.sleep(1000)\n"
    )
    with running(PYTHON, *python(code)) as pid:
        assert sample(pid).memory > 30 * MIB


def test_children_of_threads() -> None:
    code = (
        "import os, threading, time\n"
        "def work():\n"
        "    if os.fork() == 0:\n"
        f"        data = b'x' * {30 * MIB}\n"
        "        print('ready', flush=True)\n"
        "    time.sleep(1000)\n"
        "threading.Thread(target=work).start()\n"
    )
    with running(PYTHON, *python(code)) as pid:
        assert sample(pid).memory > 30 * MIB


def test_times() -> None:
    """Of processes that run, and of those that have ended and were waited for."""
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    while time.process_time() < 0.2: pass\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "while time.process_time() < 0.2: os.getppid()\n"
        "print('ready', flush=True); time.sleep(1000)\n"
    )
    with running(PYTHON, *python(code)) as pid:
        found = sample(pid)
    assert found.user_time + found.system_time > 0.3


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names(name: bytes) -> None:
    """A process has any bytes as its name."""
    code = (
        "import ctypes, time\n"
        f"ctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0); data = b'x' * {30 * MIB}\n"
        "print('ready', flush=True); time.sleep(1000)\n"
    )
    with running(PYTHON, *python(code)) as pid:
        found = sample(pid)
    assert found.memory > 30 * MIB
    assert found.user_time < 100


def test_processes_of_ours_do_not_count() -> None:
    """Only those of another pid namespace: ours may have got the number of one that ended."""
    assert sample(os.getpid()) == Sample()
    with ramet.spawn(["sleep", "1000"]) as child:
        assert sample(child.pid) == Sample()
        child.kill()


def test_processes_that_have_ended() -> None:
    with SHELL.popen(["true"]) as process:
        process.wait()
    assert sample(process.pid) == Sample()


def test_a_zombie() -> None:
    """The first process, before anybody has waited for it."""
    with SHELL.popen(["true"]) as process:
        os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOWAIT)
        found = sample(process.pid)
    assert (found.memory, found.largest) == (0, 0)


def test_while_they_come_and_go() -> None:
    """Nothing that ends while it is looked at is an error."""
    with running(SHELL, "sh", "-c", "echo ready; while :; do (:; :) & (:); done") as pid:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            assert sample(pid).largest > 0
        os.kill(pid, signal.SIGKILL)
        until(lambda: sample(pid).largest == 0)
