"""Tasks whose handle is gone."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from ramet import CloneFlags, _native, _orphans
from tests.childlib import WALL, Gate, Library, Script, load, run, start, start_thread
from tests.isolated import run_function, run_python
from tests.waiting import counted, has_child, in_fork, running, sweep, until, wait_for_zombie

pytestmark = [
    pytest.mark.usefixtures("lib"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

VM, PARENT = CloneFlags.VM, CloneFlags.PARENT
kinds = pytest.mark.parametrize("flags", [0, VM], ids=["copied", "shared"])
ends = pytest.mark.parametrize("end", ["dropped", "closed"])


def orphan(end: str, flags: int, **options: Any) -> tuple[int, int, Gate]:
    """Start a child, and give up its handle. Returns pid, pidfd and the gate where it waits."""
    script = Script()
    gate = script.gate()
    child = start(script, flags=flags, **options)
    pid, pidfd = child.pid, child.pidfd
    if end == "closed":
        child.close()
        child.close()  # does nothing more
    return pid, pidfd, gate


@kinds
@ends
@pytest.mark.parametrize("exit_signal", [0, signal.SIGUSR1, signal.SIGCHLD])
def test_reaped_at_a_later_start(lib: Library, end: str, flags: int, exit_signal: int) -> None:
    with counted(signal.SIGUSR1) as seen:
        pid, pidfd, gate = orphan(end, flags, exit_signal=exit_signal)
        assert run(lib.identity, 3).code == 3
        assert has_child(pid)
        os.fstat(pidfd)
        gate.open()
        wait_for_zombie(pid)
        assert run(lib.identity, 3).code == 3
        assert not has_child(pid)
        assert not _orphans.waiting
        until(lambda: seen or exit_signal != signal.SIGUSR1)


@kinds
@ends
def test_ended_before(lib: Library, end: str, flags: int) -> None:
    """What has ended already is reaped at once."""
    child = start(lib.identity, 3, flags)
    pid = child.pid
    wait_for_zombie(pid)
    if end == "closed":
        child.close()
    del child
    assert not has_child(pid)
    assert not _orphans.waiting


@kinds
def test_reaped_by_others(lib: Library, flags: int) -> None:
    pid, _, gate = orphan("dropped", flags)
    gate.open()
    os.waitid(os.P_PID, pid, os.WEXITED | WALL)
    run(lib.identity)
    assert not _orphans.waiting


def test_in_a_cycle(lib: Library) -> None:
    child = start(lib.identity, 3)
    pid = child.pid
    wait_for_zombie(pid)
    cycle: list[object] = [child]
    cycle.append(cycle)
    del cycle, child
    gc.collect()
    assert not has_child(pid)


@pytest.mark.parametrize("flags", [VM | PARENT, VM | PARENT | CloneFlags.CHILD_SETTID])
@ends
def test_memory_of_what_is_not_ours_to_reap(flags: int, end: str) -> None:
    run_function(check_memory_of_what_is_not_ours_to_reap, int(flags), end)


def check_memory_of_what_is_not_ours_to_reap(flags: int, end: str) -> None:
    """A sibling that shares our memory: it cannot be waited for, but its memory is freed."""
    warnings.simplefilter("ignore", ResourceWarning)

    def sibling() -> None:
        word = ctypes.c_int()
        kept = weakref.ref(word)
        options = {"ctid": word} if flags & CloneFlags.CHILD_SETTID else {"ptid": word}
        pid, _, gate = orphan(end, flags, **options)
        del word, options
        gc.collect()
        _orphans.sweep()
        assert kept() is not None
        assert len(_orphans.waiting) == 1
        gate.open()
        sweep()
        assert kept() is None
        assert os.getpid() != pid

    in_fork(sibling)
    os.waitpid(-1, WALL)


BAD_STARTS: dict[str, Callable[[int], object]] = {
    "refused by the kernel": lambda fn: start(fn, bytearray(8), VM, set_tid=[os.getpid()]),
    "refused by us": lambda fn: start(fn, bytearray(8), CloneFlags.SIGHAND),
    "a thread": lambda fn: start_thread(fn, bytearray(8), set_tid=[os.getpid()]),
    "no cgroup": lambda fn: start(fn, bytearray(8), VM, cgroup="/missing"),
}


@pytest.mark.parametrize("bad", BAD_STARTS)
@pytest.mark.filterwarnings("error")
def test_a_failed_start_leaves_no_orphan(call: str, lib: Library, bad: str) -> None:
    """Nor a warning."""
    for _ in range(3):
        with pytest.raises((OSError, ValueError)):
            BAD_STARTS[bad](lib.identity)
    gc.collect()
    assert not _orphans.waiting


def test_sweeps_of_many_threads(lib: Library) -> None:
    """Each orphan is settled once, whoever comes first."""
    pids, gates = zip(*[orphan("dropped", VM)[::2] for _ in range(8)], strict=True)
    for gate in gates:
        gate.open()
    for pid in pids:
        wait_for_zombie(pid)
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        for _ in range(20):
            _orphans.sweep()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not _orphans.waiting
    assert not any(has_child(pid) for pid in pids)


# --- forks --------------------------------------------------------------------------------------


def test_fork() -> None:
    run_function(check_fork)


def check_fork() -> None:
    """The fork closes its own descriptors of our orphans, and leaves them alone."""
    warnings.simplefilter("ignore", ResourceWarning)
    lib = load()
    orphans = [orphan(end, flags) for end in ("dropped", "closed") for flags in (0, int(VM))]
    script = Script()
    gate = script.gate()
    thread = start_thread(script)
    del thread
    assert len(_orphans.waiting) == 5

    def fork() -> None:
        assert not _orphans.waiting
        for _, pidfd, _ in orphans:
            with pytest.raises(OSError, match="Bad file descriptor") as caught:
                os.fstat(pidfd)
            assert caught.value.errno == errno.EBADF
        for flags in (0, VM, VM | CloneFlags.VFORK):
            assert run(lib.identity, 3, flags).code == 3
        assert start_thread(lib.identity, 3).join() == 3

    in_fork(fork)
    assert len(_orphans.waiting) == 5
    gate.open()
    for pid, pidfd, gate in orphans:
        os.fstat(pidfd)
        gate.open()
        wait_for_zombie(pid)
    sweep()
    assert not any(has_child(pid) for pid, _, _ in orphans)


# --- the end of the interpreter -----------------------------------------------------------------

# The output ends with the interpreter, not with the child.
RUNS_ON = "script.call('close', 1); script.call('close', 2)"
HANDLES = {
    "running child": "child = start(script, flags={flags})",
    "closed child": "child = start(script, flags={flags}); child.close()",
    "reaped child": "child = start(lib.identity, 1, {flags}); child.wait()",
    "closed and reaped": "child = start(lib.identity, 1, {flags}); child.wait(); child.close()",
    "dropped child": "start(script, flags={flags})",
    "thread": "thread = start_thread(script)",
    "dropped thread": "start_thread(script)",
    "ended thread": "thread = start_thread(lib.identity); thread.join()",
    "in a cycle": "cycle = [start(script, flags={flags})]; cycle.append(cycle)",
}


@kinds
@pytest.mark.parametrize("kind", HANDLES)
def test_exit(kind: str, flags: int) -> None:
    """The interpreter ends well, whatever still runs; nothing is said but of what was dropped."""
    done = run_python(
        "import warnings; warnings.simplefilter('ignore', ResourceWarning)\n"
        "from tests.childlib import Script, load, start, start_thread\n"
        "lib, script = load(), Script()\n"
        f"{RUNS_ON if 'thread' not in kind else ''}\n"
        "script.sleep(900)\n"
        f"{HANDLES[kind].format(flags=flags)}\n"
        "print('done')\n"
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_exit_with_a_warning() -> None:
    """A child that runs on at the end of the interpreter is worth a warning."""
    done = run_python(
        "import warnings; warnings.simplefilter('always', ResourceWarning)\n"
        "from tests.childlib import Script, load, start, start_thread\n"
        "child = start(load().identity)\n",
        check=False,
    )
    assert done.returncode == 0
    assert "was not waited for" in done.stderr
    assert "Traceback" not in done.stderr


# --- what runs on when all else is gone ---------------------------------------------------------

# The script lies in memory that is unmapped when nothing keeps it.
GOES_ON = """if True:
    import warnings; warnings.simplefilter('ignore', ResourceWarning)
    from tests.childlib import Script, load, start, start_thread
    script = Script()
    script.sleep(300)
    script.call('write', 1, b'went on', 7)
    task = {}
"""


@kinds
def test_exit_takes_nothing_from_a_running_child(flags: int) -> None:
    assert run_python(GOES_ON.format(f"start(script, flags={flags})")).stdout == "went on"


@pytest.mark.skipif(
    sys.version_info < (3, 13), reason="before 3.13 ctypes is not for isolated subinterpreters"
)
@pytest.mark.parametrize("what", [f"start(script, flags={int(VM)})", "start_thread(script)"])
def test_the_end_of_a_subinterpreter_takes_nothing(what: str) -> None:
    done = run_python(
        "import time, _interpreters\n"
        "one = _interpreters.create('isolated')\n"
        f"failed = _interpreters.run_string(one, {GOES_ON.format(what)!r})\n"
        "assert failed is None, failed\n"
        "_interpreters.destroy(one)\n"
        "time.sleep(1)\n"
    )
    assert done.stdout == "went on"


def test_a_start_when_the_interpreter_ends() -> None:
    """The modules are gone when this __del__ is called."""
    done = run_python(
        "import ctypes, os, ramet, sys\n"
        "from tests.childlib import load\n"
        "fn = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(load().identity)\n"
        "class Late:\n"
        "    def __del__(self, clone=ramet.clone, fn=fn, write=os.write, modules=sys.modules):\n"
        "        write(1, b'%d modules, code %d' % (len(modules), clone(fn, 7).wait().code))\n"
        "late = Late()\n"
        "late.cycle = late\n"
    )
    assert done.stdout == "0 modules, code 7"


def test_each_sweep_looks_at_a_few(lib: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """In turn, so that it takes no longer when many wait, and all are found."""
    looked_at = []
    settle = _orphans._settle

    def counting(task: _native.Task) -> bool:
        looked_at.append(id(task))
        return settle(task)

    monkeypatch.setattr(_orphans, "_settle", counting)
    with ExitStack() as stack:
        for _ in range(40):
            child, _ = stack.enter_context(running(VM))
            child.close()
        assert len(_orphans.waiting) == 40
        looked_at.clear()
        _orphans.sweep()
        assert len(looked_at) == 16
        _orphans.sweep()
        _orphans.sweep()
        assert set(looked_at) == set(map(id, _orphans.waiting))
    until(lambda: run(lib.identity).code == 0 and not _orphans.waiting)
