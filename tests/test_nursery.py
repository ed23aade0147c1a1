"""Children of a zygote between their birth and their work."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet import CloneFlags, Zygote
from tests.childlib import number
from tests.functions import add, ids, interrupt_self
from tests.isolated import run_python
from tests.waiting import Background, blocks, children, in_fork, stopped, sweep, until

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs privileges")


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    with Zygote(main=False) as one:
        yield one


def _waiting(zygote: Zygote) -> set[int]:
    """Our children but for the zygote: those that wait for work, if nothing else runs."""
    return children() - {zygote.pid or 0}


def _has_ended(pid: int) -> bool:
    """Whether a process of ours is a zombie."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _one_waits(zygote: Zygote) -> int:
    """Have a child made ahead, and return its pid."""
    for _ in range(2):
        zygote.call(add, 1)
    (pid,) = until(lambda: _waiting(zygote))
    until(lambda: blocks(pid, "poll"))
    return pid


def test_one_waits(zygote: Zygote) -> None:
    pid = _one_waits(zygote)
    for _ in range(3):
        assert zygote.call(ids) == (pid, os.getpid())
        (pid,) = until(lambda: _waiting(zygote))
    zygote.close()
    assert not _waiting(zygote)


def test_none_waits_before_there_were_two_alike(zygote: Zygote) -> None:
    zygote.call(add, 1)
    time.sleep(0.05)
    assert not _waiting(zygote)


def test_none_waits() -> None:
    with Zygote(main=False, ahead=False) as zygote:
        for i in range(3):
            assert zygote.call(add, i) == i + 1
            time.sleep(0.02)
            assert not _waiting(zygote)


def test_options_are_for_the_one_that_waits(zygote: Zygote) -> None:
    pid = _one_waits(zygote)
    limited = zygote.using(nice=3, rlimits={resource.RLIMIT_NOFILE: (99, 99)})
    with limited.start(resource.getrlimit, resource.RLIMIT_NOFILE) as child:
        assert child.pid == pid
        assert child.result() == (99, 99)


@root
def test_one_of_another_kind(zygote: Zygote) -> None:
    apart = zygote.using(flags=CloneFlags.NEWPID)
    pid = _one_waits(zygote)
    assert apart.call(os.getpid) == 1
    assert _waiting(zygote) == {pid}
    assert apart.call(os.getpid) == 1
    (other,) = until(lambda: _waiting(zygote) - {pid})
    with apart.start(os.getpid) as child:
        assert child.pid == other
        assert child.result() == 1
    # Of two kinds in turn, at most one waits.
    for _ in range(3):
        assert zygote.call(add, 1) == 2
        assert apart.call(add, 1) == 2
    assert len(_waiting(zygote)) <= 1


@root
@pytest.mark.parametrize("flag", ["NEWNS", "NEWUTS", "NEWCGROUP", "NEWNET"])
def test_namespaces_that_are_copies_are_not_made_ahead(zygote: Zygote, flag: str) -> None:
    bound = zygote.using(flags=CloneFlags[flag])
    for _ in range(3):
        assert bound.call(add, 1) == 2
        time.sleep(0.02)
        assert not _waiting(zygote)


@root
def test_a_cgroup_is_not_joined_ahead(zygote: Zygote, cgroup: Path) -> None:
    for _ in range(3):
        zygote.using(cgroup=cgroup).call(add, 1)
        time.sleep(0.02)
        assert not _waiting(zygote)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_the_one_that_waits_is_killed(zygote: Zygote, sig: signal.Signals) -> None:
    for _ in range(3):
        pid = _one_waits(zygote)
        os.kill(pid, sig)
        until(lambda: _has_ended(pid))  # noqa: B023 - used at once
        assert zygote.call(os.getpid) != pid
    zygote.close()
    assert not _waiting(zygote)


def test_the_one_that_waits_is_reaped_by_others(zygote: Zygote) -> None:
    pid = _one_waits(zygote)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert zygote.call(os.getpid) != pid


def test_the_one_that_waits_is_stopped(zygote: Zygote) -> None:
    pid = _one_waits(zygote)
    os.kill(pid, signal.SIGSTOP)
    zygote.close()
    assert not children()


def test_interrupts_before_there_is_work_are_for_others(zygote: Zygote) -> None:
    pid = _one_waits(zygote)
    for pause in (0, 1e-4, 0.01):
        os.kill(pid, signal.SIGINT)
        time.sleep(pause)
        assert zygote.call(time.sleep, 0.01) is None
        pid = _one_waits(zygote)
    assert zygote.call(interrupt_self) == "interrupted"


def test_in_a_fork(zygote: Zygote) -> None:
    """A copy of us has no share in it, and does not keep it from ending."""
    pid = _one_waits(zygote)

    def use() -> None:
        assert zygote.call(ids)[1] == os.getpid()
        zygote.close()

    in_fork(use)
    assert zygote.call(os.getpid) == pid


def test_ends_with_us() -> None:
    """Also if we are killed."""
    done = run_python(
        "import os, signal, time, ramet\n"
        "zygote = ramet.Zygote(main=False)\n"
        "zygote.call(abs, -1), zygote.call(abs, -1)\n"
        "time.sleep(0.1)\n"
        "with open(f'/proc/self/task/{os.getpid()}/children') as list: print(list.read())\n"
        "os.sys.stdout.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        check=False,
    )
    pids = done.stdout.split()
    assert len(pids) == 2
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


@pytest.mark.parametrize("stage", ["first", "ahead"])
def test_the_zygote_is_killed_before_it_tells_of_a_birth(tmp_path: Path, stage: str) -> None:
    """The child is not left behind: the kernel has told of it."""
    preload = ["dies"] if stage == "first" else []
    (tmp_path / "dies.py").write_text(
        f"from tests.seccomp import kill_on\nkill_on({number('sendmsg')})\n"
    )
    run_python(
        "import os, signal, sys, ramet\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"zygote = ramet.Zygote({preload}, main=False)\n"
        "try:\n"
        "    zygote.call(abs, -1), zygote.call(abs, -1)\n"
        "    os.kill(zygote.pid, signal.SIGKILL)\n"
        "    zygote.call(abs, -1)\n"
        "except ramet.ZygoteError as error:\n"
        "    assert 'killed by' in str(error), error\n"
        "zygote.close()\n"
        "try:\n"
        "    print(os.waitpid(-1, 0))\n"
        "except ChildProcessError:\n"
        "    pass\n"
        "else:\n"
        "    raise AssertionError('a child is left')\n"
    )


def _refuse_clone3(directory: Path, error: int) -> None:
    """Write a module that has clone3 fail in the zygote that imports it."""
    code = f"from tests.seccomp import refuse\nrefuse({number('clone3')}, {error})\n"
    (directory / "refuses.py").write_text(code)


def test_by_clone(tmp_path: Path) -> None:
    """Where clone3 is not to be had."""
    _refuse_clone3(tmp_path, errno.ENOSYS)
    run_python(
        "import os, sys, time, ramet\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "with ramet.Zygote(['refuses'], main=False) as zygote:\n"
        "    zygote.call(abs, -1), zygote.call(abs, -1)\n"
        "    assert zygote._nursery._channel.ordered[1]\n"
        "    assert zygote.call(abs, -2) == 2\n"
    )


def test_a_refusal_is_told_to_the_one_who_asks(tmp_path: Path) -> None:
    _refuse_clone3(tmp_path, errno.EAGAIN)
    run_python(
        "import errno, os, sys, ramet\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "with ramet.Zygote(['refuses'], main=False) as zygote:\n"
        "    for _ in range(3):\n"
        "        try:\n"
        "            zygote.call(abs, -1)\n"
        "        except OSError as error:\n"
        "            assert error.errno == errno.EAGAIN, error\n"
        "        else:\n"
        "            raise AssertionError('not refused')\n"
    )


# --- signals ------------------------------------------------------------------------------------


def test_an_interrupt_just_after_the_start_is_for_the_work(zygote: Zygote) -> None:
    for _ in range(20):
        with zygote.start(time.sleep, 30) as child:
            child.child.send_signal(signal.SIGINT)
            assert isinstance(child.exception(), KeyboardInterrupt)


def test_handlers_of_a_preload_are_not_called_for_old_signals(tmp_path: Path) -> None:
    (tmp_path / "handles.py").write_text(
        "import signal, sys\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(5))\n"
    )
    run_python(
        "import os, signal, sys, time, ramet\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n"
        "os.setpgid(0, 0)\n"
        "with ramet.Zygote(['handles'], main=False) as zygote:\n"
        "    for i in range(5):\n"
        "        zygote.call(abs, -1), zygote.call(abs, -1)\n"
        "        time.sleep(0.02 * (i > 1))\n"
        "        os.killpg(0, signal.SIGUSR1)\n"
        "        time.sleep(0.02)\n"
        "        assert zygote.call(abs, -i) == i\n"
    )


def _interrupted(code: str) -> None:
    """Have a handler raise at any time in some code that uses `zygote`; nothing is left of it."""
    done = run_python(
        "import gc, os, random, signal, time, ramet\n"
        "from ramet import _orphans\n"
        "class Interrupt(BaseException): pass\n"
        "def handler(*_): raise Interrupt\n"
        "signal.signal(signal.SIGALRM, handler)\n"
        "zygote = ramet.Zygote(main=False)\n"
        "zygote.call(abs, -1)\n"
        "fds = len(os.listdir('/proc/self/fd'))\n"
        "end = time.monotonic() + 5\n"
        "hits = 0\n"
        "while time.monotonic() < end:\n"
        "    try:\n"
        "        try:\n"
        "            zygote.warm_up()\n"
        "            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 4e-3))\n"
        f"            {code}\n"
        "        finally:\n"
        "            signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "    except Interrupt:\n"
        "        hits += 1\n"
        "assert hits > 5, hits\n"
        "assert zygote.call(abs, -2) == 2\n"
        "zygote.close()\n"
        "gc.collect()\n"
        "end = time.monotonic() + 5\n"
        "while _orphans.waiting and time.monotonic() < end:\n"
        "    _orphans.sweep()\n"
        "    time.sleep(0.01)\n"
        "try:\n"
        "    print(os.waitpid(-1, os.WNOHANG))\n"
        "except ChildProcessError:\n"
        "    pass\n"
        "else:\n"
        "    raise AssertionError('a child is left')\n"
        "left = len(os.listdir('/proc/self/fd'))\n"
        "assert left <= fds - 1, (left, fds)  # the zygote's are closed\n",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # What is raised while an object goes can only be written there; by the interpreter.
    assert "Warning" not in done.stderr


def test_a_call_is_interrupted() -> None:
    _interrupted("[zygote.call(abs, -1) for _ in range(5)]")


def test_a_close_is_interrupted() -> None:
    _interrupted("zygote.call(abs, -1), zygote.call(abs, -1), zygote.close()")


# --- the zygote does not answer -----------------------------------------------------------------


def _stopped(zygote: Zygote) -> int:
    """Stop a zygote that has a child to make; its pid."""
    pid = zygote.pid
    assert pid is not None
    _one_waits(zygote)
    os.kill(pid, signal.SIGSTOP)
    assert zygote.call(add, 1) == 2  # by the one that waits
    return pid


def test_the_zygote_is_stopped_when_it_is_closed(zygote: Zygote) -> None:
    zygote.warm_up()
    _stopped(zygote)
    zygote.close()
    assert not children()


def test_the_zygote_goes_on_while_it_is_closed(zygote: Zygote) -> None:
    zygote.warm_up()
    pid = _stopped(zygote)
    later = threading.Timer(0.9, os.kill, (pid, signal.SIGCONT))
    later.start()
    zygote.close()
    later.join()
    assert not children()


def test_dropped_in_a_cycle() -> None:
    zygote = Zygote(main=False)
    _one_waits(zygote)
    zygote.itself = zygote  # type: ignore[attr-defined]
    del zygote
    gc.collect()
    sweep()  # free-threaded builds may drop the handle of the zygote first
    assert not children()


# --- descriptors --------------------------------------------------------------------------------


@root
def test_no_room_after_privileges_were_dropped() -> None:
    """A child of others' ids cannot be killed: it ends by itself."""
    run_python(
        "import errno, os, resource, ramet\n"
        "zygote = ramet.Zygote(main=False)\n"
        "zygote.call(abs, -1)\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "used = {int(fd) for fd in os.listdir('/proc/self/fd')}\n"
        "free = [fd for fd in range(100) if fd not in used or fd == max(used)]\n"
        "seen = []\n"
        "for room in range(7):\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (free[room], hard))\n"
        "    try:\n"
        "        seen.append(zygote.call(abs, -1))\n"
        "    except OSError as error:\n"
        "        seen.append(error.errno)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "assert set(seen) == {errno.EMFILE, 1}, seen\n"
        "zygote.close()\n"
        "try:\n"
        "    print(os.waitpid(-1, 0))\n"
        "except ChildProcessError:\n"
        "    pass\n"
        "else:\n"
        "    raise AssertionError('a child is left')\n"
    )


def test_no_room_in_the_child(zygote: Zygote) -> None:
    zygote.warm_up()
    assert zygote.pid is not None
    resource.prlimit(zygote.pid, resource.RLIMIT_NOFILE, (12, 12))
    numbers = dict.fromkeys(range(20, 32), 0)
    with pytest.raises(OSError, match="can't have these descriptors") as caught:
        zygote.using(fds=numbers).call(add, 1)
    assert caught.value.errno == errno.EMFILE
    assert zygote.call(add, 1) == 2


def test_many_files_of_a_preload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "many.py").write_text("files = [open('/dev/null') for _ in range(300)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    with Zygote(["many"], main=False) as zygote:
        assert zygote.call(add, 1) == 2


def test_bad_descriptors_of_the_work_cost_one_child(zygote: Zygote) -> None:
    """Some cannot be passed: those of io_uring, for one."""
    _one_waits(zygote)
    pid = zygote.pid
    ring = ctypes.CDLL(None, use_errno=True).syscall(number("io_uring_setup"), 1, bytes(120))
    if ring < 0:
        pytest.skip(f"no io_uring here: {os.strerror(ctypes.get_errno())}")
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            zygote.using(fds={9: ring}).call(add, 1)
    finally:
        os.close(ring)
    assert zygote.call(add, 1) == 2
    assert zygote.pid == pid
    until(lambda: len(_waiting(zygote)) == 1)


def test_forks_while_others_use_it(zygote: Zygote) -> None:
    """A fork has no socket of what is under way, but for the moment in which a child is born."""
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            assert zygote.call(add, 1) == 2

    def look() -> None:
        fds = Path("/proc/self/fd").iterdir()
        names = [os.readlink(fd) for fd in fds if fd.is_symlink()]
        assert not [name for name in names if name.startswith("socket:")], names

    workers = [Background(use) for _ in range(2)]
    try:
        for _ in range(50):
            in_fork(look)
    finally:
        stop.set()
        for worker in workers:
            worker.result()


def test_a_handler_that_catches_an_error_of_the_same_number(zygote: Zygote) -> None:
    """What a handler does to errno is not taken for what became of the request."""
    zygote.warm_up()
    assert zygote.pid is not None
    pid = zygote.pid

    def interrupt(*_: object) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"x")
        os.close(writer)
        os.kill(pid, signal.SIGCONT)
        raise LookupError("a handler")

    with stopped(pid, interrupt), pytest.raises(LookupError):
        zygote.call(add, 1)
    assert zygote.call(add, 1) == 2


def test_a_handler_that_forks(zygote: Zygote) -> None:
    """What the fork has of a request is closed, and an error there."""
    zygote.warm_up()
    assert zygote.pid is not None
    pid = zygote.pid
    forks = []

    def fork(*_: object) -> None:
        forks.append(os.fork())
        if forks[0] != 0:
            os.kill(pid, signal.SIGCONT)

    with stopped(pid, fork):
        code = 1
        try:
            assert zygote.call(add, 1) == 2
        except ValueError:
            code = 7
        finally:
            if forks == [0]:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(forks[0], 0)[1]) == 7
