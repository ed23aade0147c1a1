"""Groups of cgroup v2: where they can be made, and what their limits do to a sandbox.

The limits need the controllers for memory, processes and processor time, delegated to whoever runs
the tests. Root has them where cgroup.subtree_control at the top of cgroup v2 has them.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ramet
from ramet.sandbox import ProtectionError, Sandbox, Tmpfs, Verdict, _cgroup
from ramet.sandbox._cgroup import Group, find_parent, settings
from tests.isolated import run_python
from tests.waiting import in_fork, until

CONTROLLERS = {"memory", "pids", "cpu"}
MIB = 1 << 20
LIMIT = 64 * MIB
FOR_EVER = ["sleep", "1000"]


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A group in which groups have all controllers, and in which none is left at the end."""
    found, reason = find_parent(CONTROLLERS, None)
    if found is None:
        pytest.skip(reason)
    directory = Path(found) / f"ramet-test-{uuid.uuid4().hex}"
    directory.mkdir()
    try:
        (directory / "cgroup.subtree_control").write_text("+memory +pids +cpu")
        yield directory
        assert groups(directory) == []
    finally:
        directory.rmdir()


def groups(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.is_dir()]


def python(sandbox: Sandbox, code: str, **options: Any) -> Verdict:
    return sandbox.run([sys.executable, "-I", "-S", "-c", code], **options)


def states(verdict: Verdict) -> dict[str, str]:
    return {line.name: line.state for line in verdict.receipt}


# --- where groups can be made ---------------------------------------------------------------------


class Tree:
    """What looks like cgroup v2, and an own group in it."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top = top
        monkeypatch.setattr(_cgroup, "_mount_point", lambda: str(top))
        monkeypatch.setattr(_cgroup, "_own_group", lambda: "/a/b/c")
        for path in ("", "a", "a/b", "a/b/c"):
            self.give(path, "")

    def give(self, path: str, controllers: str) -> None:
        (self.top / path).mkdir(exist_ok=True)
        (self.top / path / "cgroup.subtree_control").write_text(f"{controllers}\n")
        (self.top / path / "cgroup.procs").touch()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(tmp_path, monkeypatch)


def test_the_nearest_above_ours(tree: Tree) -> None:
    tree.give("a/b", "memory pids")
    tree.give("a", "cpu memory pids")
    tree.give("", "cpu memory pids io")
    for wanted, path in (
        ([], "a/b/c"),
        (["memory"], "a/b"),
        (["memory", "pids"], "a/b"),
        (["memory", "cpu"], "a"),
        (["io"], ""),
    ):
        assert find_parent(wanted, None) == (f"{tree.top}/{path}".rstrip("/"), "")


def test_there_is_none(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is that of our own group."""
    directory, reason = find_parent(["pids", "memory"], None)
    assert directory is None
    assert f"{tree.top}/a/b/c does not give the controller memory, pids to groups" in reason
    assert "an administrator can delegate" in reason
    monkeypatch.setattr(_cgroup, "_mount_point", lambda: None)
    assert find_parent([], None) == (None, "cgroup v2 is not mounted")


def test_the_one_that_is_given(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken, or nothing is, wherever else there might be one."""
    tree.give("", "memory")
    tree.give("a", "pids")
    monkeypatch.chdir(tree.top)
    for path in ("a", Path("a"), tree.top / "a"):
        assert find_parent(["pids"], path) == (f"{tree.top}/a", "")
    assert find_parent(["memory"], "a") == (
        None,
        f"{tree.top}/a does not give the controller memory to groups",
    )
    directory, reason = find_parent([], "missing")
    assert directory is None
    assert reason == f"{tree.top}/missing is no group of cgroup v2: No such file or directory"


def test_one_that_cannot_be_reached(tree: Tree) -> None:
    """Our processes get there only by who may write to the group above both."""
    for path in ("a/b", "a/other", "other"):
        tree.give(path, "pids")
    (tree.top / "cgroup.procs").unlink()  # so that user 0 may not write to it either
    for path in ("a/b", "a/other"):
        assert find_parent(["pids"], tree.top / path) == (f"{tree.top}/{path}", "")
    directory, reason = find_parent(["pids"], tree.top / "other")
    assert directory is None
    assert f"from {tree.top}/a/b/c to {tree.top}/other: {tree.top}/cgroup.procs may not" in reason


def test_those_of_others(tmp_path: Path, as_nobody: list[str]) -> None:
    """As an ordinary user, who may read but not write."""
    tmp_path.chmod(0o755)
    for path in (".", "mine"):
        (tmp_path / path).mkdir(exist_ok=True)
        (tmp_path / path / "cgroup.subtree_control").write_text("memory\n")
        (tmp_path / path / "cgroup.procs").touch()
    os.chown(tmp_path / "mine", 65534, -1)
    # What leads there may be closed to others, so it is shown at another place.
    mounted = f'mount --bind {tmp_path} /mnt && exec "$@"'
    run_python(
        "from ramet.sandbox._cgroup import find_parent\n"
        "for path in ('/mnt', '/mnt/mine'):\n"  # where processes could not be moved to
        "    directory, reason = find_parent(['memory'], path)\n"
        "    assert directory is None\n"
        "    assert reason == f'no groups can be made in {path}: Permission denied', reason\n",
        before=["unshare", "--mount", "sh", "-c", mounted, "sh", *as_nobody],
    )


def test_what_is_here() -> None:
    """Our own group, as the kernel tells it."""
    mount, own = _cgroup._mount_point(), _cgroup._own_group()
    if mount is None or own is None:
        assert find_parent([], None) == (None, "cgroup v2 is not mounted")
    else:
        assert str(os.getpid()) in Path(f"{mount}{own}/cgroup.procs").read_text().split()


# --- settings -------------------------------------------------------------------------------------


def test_settings() -> None:
    assert settings(None, None, None, None) == {}
    assert settings(1000, None, None, None) == {
        "memory.max": "1000",
        "memory.oom.group": "1",
        "memory.swap.max": "0",
    }
    assert settings(1000, 500, None, None)["memory.swap.max"] == "500"
    assert settings(None, None, 5, None) == {"pids.max": "5"}
    assert settings(None, None, None, 1.5) == {"cpu.max": "150000 100000"}
    assert settings(None, None, None, 1e-9) == {"cpu.max": "1000 100000"}  # the kernel's least


# --- a group --------------------------------------------------------------------------------------


def test_a_group(cgroup: Path) -> None:
    group = Group(str(cgroup), {})
    (name,) = groups(cgroup)
    assert name.startswith(f"ramet-{os.getpid()}-")
    assert os.readlink(f"/proc/self/fd/{group.descriptor.number}") == str(cgroup / name)
    assert group.number("pids.missing") is None
    assert group.number("cgroup.events", "populated") == 0
    assert group.number("cgroup.events", "missing") is None
    group.close()
    assert groups(cgroup) == []
    group.close()
    assert group.number("cgroup.events", "populated") is None


def test_closing_ends_all_that_is_in_it(cgroup: Path) -> None:
    group = Group(str(cgroup), {})
    with ramet.spawn(FOR_EVER, cgroup=group.descriptor.number) as child:
        assert group.number("cgroup.events", "populated") == 1
        group.close()
        assert groups(cgroup) == []
        assert child.wait().signal == 9


def test_ends_that_take_long(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever, and what is known is not lost in an error: it goes with the next."""
    monkeypatch.setattr(Group, "kill", lambda _: None)
    monkeypatch.setattr(_cgroup, "_PATIENCE", 1)
    group = Group(str(cgroup), {})
    with ramet.spawn(FOR_EVER, cgroup=group.descriptor.number) as child:
        group.close()
        assert len(groups(cgroup)) == 1
        child.kill()
    Group(str(cgroup), {}).close()
    assert groups(cgroup) == []


def test_a_group_that_is_dropped(cgroup: Path) -> None:
    """It goes with the next one, once all in it have ended; nothing is killed."""
    group = Group(str(cgroup), {})
    with ramet.spawn(FOR_EVER, cgroup=group.descriptor.number) as child:
        del group
        gc.collect()
        Group(str(cgroup), {}).close()
        assert len(groups(cgroup)) == 1
        assert child.poll() is None
        child.kill()
    Group(str(cgroup), {}).close()
    assert groups(cgroup) == []


def test_forks_leave_it(cgroup: Path) -> None:
    group = Group(str(cgroup), {})
    in_fork(group.__del__)
    assert len(groups(cgroup)) == 1
    group.close()


def test_settings_that_there_are_not(cgroup: Path) -> None:
    for name, value in (("no.such.file", "1"), ("cgroup.freeze", "nonsense")):
        with pytest.raises(OSError, match=r"No such file|Invalid|Permission"):
            Group(str(cgroup), {name: value})
        assert groups(cgroup) == []


def test_swap_that_cannot_be_limited(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file is missing there must be no swap, or there is an error."""
    monkeypatch.setattr(_cgroup, "_has_swap", lambda: False)
    Group(str(cgroup), {"memory.swap.max": "0"}).close()
    monkeypatch.setattr(_cgroup, "_has_swap", lambda: True)
    with pytest.raises(FileNotFoundError, match=r"memory\.swap\.max"):
        Group(str(cgroup), {"memory.swap.max": "0"})
    assert groups(cgroup) == []


# --- limits ---------------------------------------------------------------------------------------


def test_memory(delegated: Path) -> None:
    limited = Sandbox(python=True, memory=LIMIT, cgroup=delegated)
    fits = python(limited, f"x = b'x' * {LIMIT // 4}")
    assert fits.ok
    assert fits.peak_memory is not None
    assert LIMIT // 4 < fits.peak_memory <= LIMIT
    assert fits.peak_memory_source == "all of the sandbox: memory.peak of its cgroup"
    assert states(fits)["memory"] == states(fits)["swap"] == "applied"
    much = python(limited, f"x = b'x' * {2 * LIMIT}; import time; time.sleep(1000)")
    assert (much.reason, much.signal, much.exit_code) == ("memory", 9, None)
    assert much.shell_status == 124
    assert much.peak_memory is not None
    assert LIMIT * 3 // 4 < much.peak_memory <= LIMIT


def test_memory_of_all_together(delegated: Path) -> None:
    """No process has too much. All are killed, not just the one that was too much."""
    code = (
        "import os, time\n"
        "for _ in range(4):\n"
        "    if os.fork() == 0:\n"
        f"        x = b'x' * {LIMIT // 3}\n"
        "        break\n"
        "time.sleep(1000)\n"
    )
    assert python(Sandbox(python=True, memory=LIMIT, cgroup=delegated), code).reason == "memory"


def test_memory_that_files_take(delegated: Path) -> None:
    limited = Sandbox(
        system=True, memory=LIMIT, cgroup=delegated, files={"/space": Tmpfs(4 * LIMIT)}
    )
    verdict = limited.run(["sh", "-c", "cat /dev/zero > /space/x; sleep 1000"])
    assert verdict.reason == "memory"


@pytest.mark.skipif(not _cgroup._has_swap(), reason="there is no swap")
@pytest.mark.parametrize(
    ("swap", "reason"), [(None, "memory"), (0, "memory"), (2 * LIMIT, "exited")]
)
def test_swap(delegated: Path, swap: int | None, reason: str) -> None:
    limited = Sandbox(python=True, memory=LIMIT, swap=swap, cgroup=delegated)
    assert python(limited, f"x = b'x' * {LIMIT * 3 // 2}").reason == reason


COUNT = """
import os, sys, threading, time
count = 1
try:
    while count < 50:
        if sys.argv[1] == "threads":
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        elif os.fork() == 0:
            time.sleep(1000)
        count += 1
except (BlockingIOError, RuntimeError):
    pass
os.write(1, b"%d" % count)
os._exit(0)
"""


@pytest.mark.parametrize("kind", ["processes", "threads"])
@pytest.mark.parametrize("limit", [1, 5])
def test_processes(delegated: Path, kind: str, limit: int) -> None:
    """There are just as many by the group as without one, where that can be."""
    args = [sys.executable, "-I", "-S", "-c", COUNT, kind]
    by_group = Sandbox(python=True, processes=limit, cgroup=delegated).run(args)
    assert by_group.stdout == b"%d" % limit, by_group.stderr
    line = next(line for line in by_group.receipt if line.name == "processes")
    assert line.how == f"pids controller, {delegated}"


@pytest.mark.parametrize("kind", ["processes", "threads"])
@pytest.mark.parametrize("limit", [1, 5])
def test_processes_without_a_group(monkeypatch: pytest.MonkeyPatch, kind: str, limit: int) -> None:
    monkeypatch.setattr(_cgroup, "find_parent", lambda *_: (None, "there is none"))
    args = [sys.executable, "-I", "-S", "-c", COUNT, kind]
    verdict = Sandbox(python=True, processes=limit).run(args)
    assert verdict.stdout == b"%d" % limit, verdict.stderr


def test_a_fork_bomb(delegated: Path) -> None:
    bomb = "bomb() { bomb | bomb & }; bomb; sleep 1000"
    limited = Sandbox(system=True, processes=20, memory=LIMIT, cgroup=delegated, output_size=1000)
    verdict = limited.run(["sh", "-c", f"{bomb}"], timeout=1)
    assert verdict.reason in {"timeout", "output"}


def test_cpu(delegated: Path) -> None:
    """It is throttled."""
    limited = Sandbox(system=True, cpu=0.05, cgroup=delegated)
    with limited.popen(["sh", "-c", "while :; do :; done"]) as process:
        (name,) = groups(delegated)
        stat = delegated / name / "cpu.stat"
        assert (delegated / name / "cpu.max").read_text() == "5000 100000\n"
        until(lambda: "nr_throttled 0\n" not in stat.read_text())
        process.kill()


def test_times_of_all_together(delegated: Path) -> None:
    """Also of those that the program has not waited for."""
    code = (
        "import os, time\n"
        "reader, writer = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0:\n"
        "        while time.process_time() < 0.3: pass\n"
        "    os._exit(0)\n"
        "os.close(writer)\n"
        "os.wait()\n"
        "os.read(reader, 1)\n"
    )
    verdict = python(Sandbox(python=True, cpu=10, cgroup=delegated), code)
    assert verdict.ok, verdict.stderr
    assert verdict.user_time + verdict.system_time > 0.25


def test_cpu_time_of_all_together(delegated: Path) -> None:
    code = "import os\nfor _ in range(3): os.fork()\nwhile True: pass\n"
    limited = Sandbox(python=True, cpu=10, cpu_time=1, cgroup=delegated)
    assert python(limited, code).reason == "cpu"


def test_the_group_cannot_be_seen(delegated: Path) -> None:
    """The program's own group is the top of all that it knows of."""
    limited = Sandbox(system=True, memory=LIMIT, cgroup=delegated)
    verdict = limited.run(["sh", "-c", "cat /proc/self/cgroup; ls /sys/fs/cgroup"])
    assert [line for line in verdict.stdout.splitlines() if line.startswith(b"0:")] == [b"0::/"]
    assert b"/sys/fs/cgroup" in verdict.stderr


# --- nothing is left ------------------------------------------------------------------------------


def test_all_ends_with_the_program(delegated: Path) -> None:
    """And the group is gone when there is a verdict, or a return code."""
    limited = Sandbox(system=True, memory=LIMIT, cgroup=delegated)
    script = ["sh", "-c", "setsid sleep 1000 & exit 3"]
    assert limited.run(script).exit_code == 3
    assert groups(delegated) == []
    with limited.popen(script) as process:
        assert process.wait() == 3
        assert groups(delegated) == []
    with limited.popen(FOR_EVER) as process:
        assert len(groups(delegated)) == 1
        process.kill()
    assert groups(delegated) == []
    assert limited.run(FOR_EVER, timeout=0.1).reason == "timeout"


def test_popen_that_is_killed_for_memory(delegated: Path) -> None:
    limited = Sandbox(python=True, memory=LIMIT, cgroup=delegated)
    code = f"x = b'x' * {2 * LIMIT}; import time; time.sleep(1000)"
    with limited.popen([sys.executable, "-I", "-S", "-c", code]) as process:
        assert process.wait() == -9


def test_failed_starts(delegated: Path) -> None:
    limited = Sandbox(system=True, memory=LIMIT, cgroup=delegated, cwd="/missing")
    verdict = limited.run(["true"])
    assert verdict.reason == "start_failed"
    assert set(states(verdict).values()) == {"planned"}
    assert groups(delegated) == []
    with pytest.raises(FileNotFoundError):
        limited.popen(["true"])
    assert groups(delegated) == []
    assert Sandbox(system=True, memory=LIMIT, cgroup=delegated).run(["missing"]).error


def test_cancelled(delegated: Path) -> None:
    limited = Sandbox(system=True, memory=LIMIT, cgroup=delegated)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(limited.run_async(FOR_EVER), 0.2))
    assert groups(delegated) == []


@pytest.mark.filterwarnings("ignore:.*still running:ResourceWarning")
def test_dropped(delegated: Path) -> None:
    """A Popen that nobody has waited for: what it has started runs on, in its group."""
    limited = Sandbox(system=True, memory=LIMIT, cgroup=delegated)
    pid = limited.popen(FOR_EVER).pid
    gc.collect()
    (name,) = groups(delegated)
    assert str(pid) in (delegated / name / "cgroup.procs").read_text().split()
    os.kill(pid, 9)

    def is_gone() -> bool:
        subprocess._cleanup()  # type: ignore[attr-defined] # the standard class has kept it
        limited.run(["true"])
        return groups(delegated) == []

    until(is_gone)


# --- who may --------------------------------------------------------------------------------------

USE = """
from ramet.sandbox import Sandbox
verdict = Sandbox(system=True, memory=1 << 26, processes=5).run(["cat", "/proc/self/status"])
assert verdict.ok, verdict
lines = {line.name: (line.state, line.how) for line in verdict.receipt}
assert lines["memory"] == ("applied", "memory controller, DIRECTORY"), lines
assert lines["processes"] == ("applied", "pids controller, DIRECTORY"), lines
assert verdict.peak_memory_source.startswith("all of the sandbox")
"""


def test_delegated_to_an_ordinary_user(delegated: Path, as_nobody: list[str]) -> None:
    """As systemd does it: the directory, and the files by which processes are moved."""
    ours, leaf = delegated / "ours", delegated / "ours" / "leaf"
    leaf.mkdir(parents=True)
    (ours / "cgroup.subtree_control").write_text("+memory +pids")
    for name in (".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
        os.chown(ours / name, 65534, 65534)
    try:
        move = f'echo $$ > {leaf}/cgroup.procs && exec "$@"'
        run_python(USE.replace("DIRECTORY", str(ours)), before=["sh", "-c", move, "sh", *as_nobody])
        assert groups(ours) == ["leaf"]
    finally:
        leaf.rmdir()
        ours.rmdir()


def test_a_group_that_we_may_not_be_moved_to(delegated: Path, as_nobody: list[str]) -> None:
    """Made for an ordinary user, who is in another: the kernel would refuse, so we do."""
    for name in (".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
        os.chown(delegated / name, 65534, 65534)
    run_python(
        "from ramet.sandbox import ProtectionError, Sandbox\n"
        f"limited = Sandbox(system=True, memory=1 << 26, cgroup={str(delegated)!r})\n"
        "try:\n"
        "    limited.run(['true'])\n"
        "except ProtectionError as error:\n"
        "    assert 'no process can be moved from' in error.reason, error\n"
        "else:\n"
        "    raise AssertionError\n",
        before=as_nobody,
    )
    assert groups(delegated) == []


REFUSED = """
import os
from ramet.sandbox import ProtectionError, Sandbox
assert os.getuid() == 65534
for name, policy in (("memory", {"memory": 1 << 26}), ("swap", {"memory": 1 << 26}),
                     ("cpu", {"cpu": 1})):
    others = {"memory", "swap", "cpu"} - {name}
    try:
        Sandbox(system=True, optional=others, **policy).run(["true"])
    except ProtectionError as error:
        assert error.name == name, error
        assert "cgroup" in error.reason and "made optional" in error.reason, error
    else:
        raise AssertionError(name)
    receipt = Sandbox(system=True, optional={name, *others}, **policy).run(["true"]).receipt
    (line,) = [line for line in receipt if line.name == name]
    assert line.state == "degraded", line
(line,) = [line for line in Sandbox(system=True, processes=5).receipt if line.name == "processes"]
assert (line.state, line.how[:12]) == ("applied", "RLIMIT_NPROC"), line
for policy in ({}, {"optional": ["memory", "swap", "cpu"]}):
    try:
        Sandbox(system=True, cgroup="/sys/fs/cgroup", memory=1 << 26, **policy).run(["true"])
    except ProtectionError as error:
        assert error.name == "cgroup", error
    else:
        raise AssertionError("cgroup")
"""


def test_without_delegation(as_nobody: list[str]) -> None:
    """A limit is refused, or known to be missing; it is never passed over."""
    run_python(REFUSED, before=as_nobody)


def test_errors_name_the_group(tmp_path: Path) -> None:
    with pytest.raises(ProtectionError, match="cgroup cannot be enforced") as caught:
        Sandbox(cgroup=tmp_path).run(["true"])
    assert str(tmp_path) in caught.value.reason
    assert caught.value.name == "cgroup"
    assert os.strerror(errno.ENOENT) in caught.value.reason
