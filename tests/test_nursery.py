"""Children of a zygote between their birth and their work."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet import CloneFlags, Zygote
from tests.childlib import number
from tests.functions import add, ids, interrupt_self
from tests.isolated import run_python
from tests.waiting import children, in_fork, until

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


def test_one_waits(zygote: Zygote) -> None:
    assert zygote.call(add, 1) == 2
    for _ in range(3):
        (pid,) = until(lambda: _waiting(zygote))
        assert zygote.call(ids) == (pid, os.getpid())
    zygote.close()
    assert not _waiting(zygote)


def test_none_waits() -> None:
    with Zygote(main=False, ahead=False) as zygote:
        for i in range(3):
            assert zygote.call(add, i) == i + 1
            time.sleep(0.02)
            assert not _waiting(zygote)


@root
def test_one_of_each_kind_waits(zygote: Zygote) -> None:
    apart = zygote.using(flags=CloneFlags.NEWPID | CloneFlags.NEWNET)
    for _ in range(2):
        assert zygote.call(add, 1) == 2
        assert apart.call(os.getpid) == 1
    waiting = until(lambda: _waiting(zygote) if len(_waiting(zygote)) == 2 else None)
    limited = zygote.using(nice=3, rlimits={resource.RLIMIT_NOFILE: (99, 99)})
    with (
        limited.start(resource.getrlimit, resource.RLIMIT_NOFILE) as one,
        apart.start(os.getpid) as other,
    ):
        assert {one.pid, other.pid} == waiting
        assert (one.result(), other.result()) == ((99, 99), 1)


@root
@pytest.mark.parametrize("flag", ["NEWNS", "NEWUTS", "NEWCGROUP"])
def test_namespaces_that_are_copies_are_not_made_ahead(zygote: Zygote, flag: str) -> None:
    bound = zygote.using(flags=CloneFlags[flag])
    for _ in range(2):
        assert bound.call(add, 1) == 2
        time.sleep(0.02)
        assert not _waiting(zygote)


@root
def test_a_cgroup_is_not_joined_ahead(zygote: Zygote, cgroup: Path) -> None:
    for _ in range(2):
        zygote.using(cgroup=cgroup).call(add, 1)
        time.sleep(0.02)
        assert not _waiting(zygote)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_the_one_that_waits_is_killed(zygote: Zygote, sig: signal.Signals) -> None:
    for _ in range(3):
        zygote.call(add, 1)
        (pid,) = until(lambda: _waiting(zygote))
        os.kill(pid, sig)
        until(lambda: _has_ended(pid))  # noqa: B023 - used at once
        assert zygote.call(os.getpid) != pid
    zygote.close()
    assert not _waiting(zygote)


def test_the_one_that_waits_is_reaped_by_others(zygote: Zygote) -> None:
    zygote.call(add, 1)
    (pid,) = until(lambda: _waiting(zygote))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert zygote.call(os.getpid) != pid


def test_the_one_that_waits_is_stopped(zygote: Zygote) -> None:
    zygote.call(add, 1)
    (pid,) = until(lambda: _waiting(zygote))
    os.kill(pid, signal.SIGSTOP)
    zygote.close()
    assert not children()


def test_interrupts_before_there_is_work_are_for_others(zygote: Zygote) -> None:
    zygote.call(add, 1)
    (pid,) = until(lambda: _waiting(zygote))
    os.kill(pid, signal.SIGINT)
    assert zygote.call(time.sleep, 0.01) is None
    assert zygote.call(interrupt_self) == "interrupted"


def test_in_a_fork(zygote: Zygote) -> None:
    """A copy of us has no share in it, and does not keep it from ending."""
    zygote.call(add, 1)
    (pid,) = until(lambda: _waiting(zygote))

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
        "zygote.call(abs, -1)\n"
        "while zygote._nursery._ordered is None: pass\n"
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
        "    zygote.call(abs, -1)\n"
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


def test_by_clone(tmp_path: Path) -> None:
    """Where clone3 is not to be had."""
    (tmp_path / "old.py").write_text(
        "import errno\n"
        "from tests.seccomp import refuse\n"
        f"refuse({number('clone3')}, errno.ENOSYS)\n"
    )
    run_python(
        "import os, sys, time, ramet\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "with ramet.Zygote(['old'], main=False) as zygote:\n"
        "    pids = {zygote.call(os.getpid) for _ in range(5)}\n"
        "    assert len(pids) == 5\n"
    )


def test_a_refusal_is_told_to_the_one_who_asks(tmp_path: Path) -> None:
    (tmp_path / "full.py").write_text(
        "import errno\n"
        "from tests.seccomp import refuse\n"
        f"refuse({number('clone3')}, errno.EAGAIN)\n"
    )
    run_python(
        "import errno, os, sys, ramet\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "with ramet.Zygote(['full'], main=False) as zygote:\n"
        "    for _ in range(3):\n"
        "        try:\n"
        "            zygote.call(abs, -1)\n"
        "        except OSError as error:\n"
        "            assert error.errno == errno.EAGAIN, error\n"
        "        else:\n"
        "            raise AssertionError('not refused')\n"
    )
