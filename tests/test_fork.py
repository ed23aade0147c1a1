"""ramet.fork: os.fork's contract, with what clone3 can do. In processes of one thread."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

import ramet
from ramet import CloneFlags, _clone, _fork, _native
from tests.childlib import syscall
from tests.isolated import run_function, run_python

WAYS = pytest.mark.parametrize("call", ["clone3", "clone"])


class Mutex(ctypes.Structure):
    """glibc's pthread_mutex_t."""

    _fields_ = (
        ("lock", ctypes.c_int),
        ("count", ctypes.c_uint),
        ("owner", ctypes.c_int),
        ("rest", ctypes.c_char * 64),
    )


libc = ctypes.CDLL(None, use_errno=True)
PTHREAD_MUTEX_ERRORCHECK = 2


@WAYS
def test_contract(call: str) -> None:
    run_function(check_contract, call)


def check_contract(call: str) -> None:
    _clone._clone3.missing = call == "clone"
    value = ["before"]
    child = ramet.fork()
    if child is None:
        assert os.getppid() != os.getpid()
        value.append("child")
        os._exit(7 if threading.main_thread() is threading.current_thread() else 1)
    with child:
        assert child.wait().code == 7
        assert child.wait().rusage is not None
    assert value == ["before"]
    assert syscall("gettid") == os.getpid()


@WAYS
def test_hooks(call: str) -> None:
    """In os.fork's order, also when the kernel refuses."""
    run_function(check_hooks, call)


def check_hooks(call: str) -> None:
    _clone._clone3.missing = call == "clone"
    said: list[str] = []
    for name in ("one", "two"):
        os.register_at_fork(
            before=lambda name=name: said.append(f"before {name}"),
            after_in_parent=lambda name=name: said.append(f"parent {name}"),
            after_in_child=lambda name=name: said.append(f"child {name}"),
        )
    child = ramet.fork()
    if child is None:
        os._exit(said != ["before two", "before one", "child one", "child two"])
    assert child.wait().code == 0
    assert said == ["before two", "before one", "parent one", "parent two"]
    if call == "clone3":
        said.clear()
        with pytest.raises(FileExistsError, match="clone3"):
            ramet.fork(set_tid=[os.getpid()])
        assert said == ["before two", "before one", "parent one", "parent two"]


@WAYS
def test_the_thread_knows_its_id(call: str) -> None:
    run_function(check_the_thread_knows_its_id, call)


def check_the_thread_knows_its_id(call: str) -> None:
    """The C library's copy of it: the owner of a mutex, and the target of raise()."""
    _clone._clone3.missing = call == "clone"
    child = ramet.fork()
    if child is None:
        attributes, mutex = ctypes.create_string_buffer(64), Mutex()
        libc.pthread_mutexattr_init(attributes)
        libc.pthread_mutexattr_settype(attributes, PTHREAD_MUTEX_ERRORCHECK)
        libc.pthread_mutex_init(ctypes.byref(mutex), attributes)
        assert libc.pthread_mutex_lock(ctypes.byref(mutex)) == 0
        assert mutex.owner == os.getpid()
        assert libc.pthread_mutex_unlock(ctypes.byref(mutex)) == 0
        thread = threading.Thread(target=os.getpid)
        thread.start()
        thread.join()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc["raise"](signal.SIGTERM)
        os._exit(1)
    assert child.wait().signal == signal.SIGTERM


def test_python_goes_on() -> None:
    """Handlers, threads and children of its own, and an end as of any program."""
    done = run_python(
        "import atexit, ramet, signal, subprocess, sys, threading\n"
        "seen = []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))\n"
        "child = ramet.fork()\n"
        "if child is None:\n"
        "    atexit.register(print, 'child ends', flush=True)\n"
        "    signal.raise_signal(signal.SIGUSR1)\n"
        "    thread = threading.Thread(target=seen.append, args=(2,))\n"
        "    thread.start(); thread.join()\n"
        "    assert ramet.run(['echo', 'x'], capture_output=True).stdout == b'x\\n'\n"
        "    assert subprocess.run(['true']).returncode == 0\n"
        "    assert seen == [1, 2]\n"
        "    sys.exit(5)\n"
        "assert child.wait().code == 5\n"
        "print('parent ends')\n"
    )
    assert done.stdout == "child ends\nparent ends\n"


def test_handles_of_the_parent() -> None:
    run_function(check_handles_of_the_parent)


def check_handles_of_the_parent() -> None:
    with ramet.spawn(["sleep", "60"]) as other:
        child = ramet.fork()
        if child is None:
            with pytest.raises(ChildProcessError):
                other.wait()
            os._exit(0)
        assert child.wait().code == 0
        assert other.poll() is None
        other.kill()


def test_namespaces_and_ids() -> None:
    run_function(check_namespaces_and_ids)


def check_namespaces_and_ids() -> None:
    if CloneFlags.NEWUSER not in ramet.probe().flags:
        pytest.skip("user namespaces are not allowed here")
    child = ramet.fork(CloneFlags.NEWUSER | CloneFlags.NEWPID)
    if child is None:
        os._exit(os.getpid())
    assert child.wait().code == 1
    child = ramet.fork(exit_signal=0)
    if child is None:
        os._exit(4)
    assert child.wait().code == 4


def test_cgroup(cgroup: Path) -> None:
    run_function(check_cgroup, str(cgroup))


def check_cgroup(cgroup: str) -> None:
    child = ramet.fork(cgroup=cgroup)
    if child is None:
        inside = Path("/proc/self/cgroup").read_text().strip().endswith(cgroup.rpartition("/")[2])
        os._exit(not inside)
    assert child.wait().code == 0


@pytest.mark.parametrize(
    "flag", ["VM", "VFORK", "FILES", "THREAD", "SIGHAND", "SETTLS", "CHILD_SETTID", "PARENT_SETTID"]
)
def test_flags_that_are_not_for_copies(flag: str) -> None:
    with pytest.raises(ValueError, match=f"CLONE_{flag}.*: not for a copy of this process"):
        ramet.fork(CloneFlags[flag])


def test_threads() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="the other one")
    thread.start()
    try:
        with pytest.raises(RuntimeError, match=r"has \d+ threads .*MainThread.*the other one"):
            ramet.fork()
    finally:
        stop.set()
        thread.join()


def test_audit() -> None:
    run_python(
        "import os, ramet, sys\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, args: 'fork' in event and seen.append((event, args)))\n"
        "child = ramet.fork()\n"
        "if child is None:\n"
        "    os._exit(0)\n"
        "child.wait()\n"
        "assert [event for event, _ in seen] == ['os.fork', 'ramet.fork'], seen\n"
        "def refuse(event, args):\n"
        "    if event == 'os.fork': raise ZeroDivisionError\n"
        "sys.addaudithook(refuse)\n"
        "try:\n"
        "    ramet.fork()\n"
        "except ZeroDivisionError:\n"
        "    print('refused')\n"
    )


def test_at_the_end_of_the_interpreter() -> None:
    done = run_python(
        "import os, ramet\n"
        "class Late:\n"
        "    def __del__(self, fork=ramet.fork, write=os.write):\n"
        "        try:\n"
        "            fork()\n"
        "        except RuntimeError as error:\n"
        "            write(1, str(error).encode())\n"
        "late = Late(); late.cycle = late\n"
    )
    assert done.stdout == "can't fork at interpreter shutdown"


@pytest.mark.skipif(
    sys.version_info < (3, 13), reason="before 3.13 there is no module for it by this name"
)
def test_in_a_subinterpreter() -> None:
    done = run_python(
        "import _interpreters\n"
        "one = _interpreters.create('legacy')\n"
        "failed = _interpreters.run_string(one, '''if True:\n"
        "    import ramet\n"
        "    try:\n"
        "        ramet.fork()\n"
        "    except RuntimeError as error:\n"
        '        print(error, end="")\n'
        "''')\n"
        "assert failed is None, failed\n"
        "_interpreters.destroy(one)\n"
    )
    assert done.stdout.startswith("fork is not for subinterpreters")


def test_where_the_thread_id_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """If several words look like it, another thread decides; if none does, there is no fork."""
    real = _native.thread_id_offsets()
    [offset] = {_fork.thread_id_offset()}
    assert offset in real
    for ours, others, said in (
        ([3, offset], [offset, 9], None),
        ([], [], "not to be found"),
        ([3, offset], [9], "not to be found"),
        ([3, 9], [3, 9], "not to be found"),
    ):
        answers = [ours, others]
        monkeypatch.setattr(_native, "thread_id_offsets", lambda: answers.pop(0))  # noqa: B023
        _fork.thread_id_offset.cache_clear()
        if said is None:
            assert _fork.thread_id_offset() == offset
        else:
            with pytest.raises(RuntimeError, match=said):
                _fork.thread_id_offset()
    _fork.thread_id_offset.cache_clear()


def test_many() -> None:
    run_function(check_many)


def check_many() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for i in range(100):
        child = ramet.fork()
        if child is None:
            os._exit(i)
        with child:
            assert child.wait().code == i
    assert len(os.listdir("/proc/self/fd")) == before
    assert _native.interpreter_id() == 0
