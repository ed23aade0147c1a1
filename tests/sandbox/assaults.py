"""Attacks that take a sandbox of their own: each asserts that it fails, and works without.

As a program, which does without pytest, it prints as JSON what is wrong with each.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ramet.sandbox import Bind, File, Overlay, Sandbox, Symlink, Tmpfs, Verdict
from ramet.sandbox._root import Entry
from tests.sandbox.attacked import ATTACKER, IS_ROOT, own, told, tree
from tests.sandbox.attacks import SECRET, syscall
from tests.waiting import until

PYTHON = (sys.executable, "-I", "-S", "-c")
ASSAULTS: dict[str, Callable[[], None]] = {}


def assault(function: Callable[[], None]) -> Callable[[], None]:
    ASSAULTS[function.__name__] = function
    return function


def run(code: str, *args: str, **policy: Any) -> Verdict:
    """Run Python code in a sandbox."""
    return Sandbox(python=True, **{"wall_time": 20, **policy}).run([*PYTHON, code, *args])


@contextmanager
def directory() -> Iterator[Path]:
    """A new directory that everybody can look into."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


# --- limits -------------------------------------------------------------------------------------


def _bomb(code: str, wall_time: float = 20) -> Verdict:
    """Run what takes memory, and then waits for as many seconds as it is told to."""
    assert run(code, "0").reason == "exited"
    limits = {"memory": 64 << 20, "optional": ["memory", "swap"], "wall_time": wall_time}
    return run(code, "1000", **limits)


@assault
def memory_bomb() -> None:
    """By a process with a name that looks like what /proc says of another."""
    verdict = _bomb(
        "import ctypes, sys, time\n"
        "ctypes.CDLL(None).prctl(15, b'x) Z 0 0\\nVmHWM: 0')\n"
        "data = b'x' * (200 << 20)\n"
        "time.sleep(int(sys.argv[1]))\n"
    )
    assert verdict.reason == "memory", verdict


@assault
def memory_bomb_of_many() -> None:
    """None of them has much."""
    verdict = _bomb(
        "import os, sys, time\n"
        "reader, writer = os.pipe()\n"
        "for i in range(10):\n"
        "    if os.fork() == 0:\n"
        "        data = b'x' * (15 << 20)\n"
        "        os.write(writer, b'.')\n"
        "        time.sleep(int(sys.argv[1]))\n"
        "        os._exit(0)\n"
        "for i in range(10): os.read(reader, 1)\n"
        "time.sleep(int(sys.argv[1]))\n"
    )
    assert verdict.reason == "memory", verdict


@assault
def memory_bomb_in_nameless_files() -> None:
    """Without a cgroup it is not found; which the receipt says."""
    verdict = _bomb(
        "import os, sys, time\n"
        "file = os.memfd_create('x')\n"
        "for i in range(100): os.write(file, bytes(1 << 20))\n"
        "time.sleep(int(sys.argv[1]))\n",
        1,
    )
    line = {line.name: line for line in verdict.receipt}["memory"]
    if line.state == "applied":
        assert verdict.reason == "memory", verdict
    else:
        assert "memfd_create" in line.how
        assert verdict.reason == "timeout", verdict


@assault
def output_flood() -> None:
    code = "import os, sys\nfor i in range(int(sys.argv[1])): os.write(1 + i % 2, b'x' * 9999)"
    verdict = run(code, "1000000000", output_size=50_000)
    assert verdict.reason == "output"
    assert len(verdict.stdout) + len(verdict.stderr) <= 50_000
    assert verdict.stdout_truncated or verdict.stderr_truncated
    verdict = run(code, "100")
    assert verdict.ok
    assert len(verdict.stdout) + len(verdict.stderr) == 100 * 9999


@assault
def input_that_nobody_reads() -> None:
    sandbox = Sandbox(python=True)
    assert sandbox.run([*PYTHON, "import os; os.close(0)"], bytes(1 << 24)).ok
    assert sandbox.run([*PYTHON, "0"], bytes(1 << 24), 20).ok


_BURNS = (
    "import os, sys, time\n"
    "from signal import *\n"
    "signal(SIGCHLD, SIG_IGN if sys.argv[1] == 'alone' else SIG_DFL)\n"
    "while time.monotonic() < float(sys.argv[2]):\n"
    "    pid = os.fork()\n"
    "    if pid == 0:\n"
    "        while time.process_time() < 0.05: pass\n"
    "        os._exit(0)\n"
    "    try: os.waitpid(pid, 0)\n"
    "    except ChildProcessError: pass\n"
)


def _check_time(how: str) -> None:
    verdict = run(_BURNS, how, "inf", cpu_time=0.4, wall_time=10)
    assert verdict.reason == "cpu", verdict


@assault
def processor_time_of_many() -> None:
    _check_time("waited for")


@assault
def processor_time_that_nobody_counts() -> None:
    """The kernel adds the time of a child to its parent's only if that waits for it."""
    _check_time("alone")


def _check_timeout(code: str, **policy: Any) -> None:
    verdict = run(code, wall_time=0.5, **policy)
    assert verdict.reason == "timeout", verdict


@assault
def stopped_program() -> None:
    _check_timeout("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")


@assault
def deaf_program() -> None:
    _check_timeout(
        "import signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "while True: signal.pause()\n"
    )


@assault
def endless_forks() -> None:
    _check_timeout(
        "import os\n"
        "while True:\n"
        "    try: os.fork()\n"
        "    except OSError: pass\n",
        processes=20,
    )  # fmt: skip


@assault
def many_sandboxes() -> None:
    """However they end, none keeps descriptors of ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (80, hard))
    try:
        for i in range(12):
            system = Sandbox(system=True, output_size=10)
            assert system.run(["true"]).ok, i
            assert system.run(["no-such-program"]).reason == "start_failed", i
            assert system.run(["yes"]).reason == "output", i
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- what is left -------------------------------------------------------------------------------


def _alive(marker: str) -> list[int]:
    """The processes that have a word among their arguments."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if marker.encode() in Path("/proc", name, "cmdline").read_bytes():
                found.append(int(name))
        except OSError:  # it has ended
            continue
    return found


_DAEMON = (
    "import os, signal, sys\n"
    "reader, writer = os.pipe()\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:\n"
    "        signal.signal(number, signal.SIG_IGN)\n"
    "    for i in range(3):\n"
    "        if os.fork() == 0:\n"
    "            os.write(writer, b'.')\n"
    "            for i in range(3): os.close(i)\n"
    "            while True: signal.pause()\n"
    "    os._exit(0)\n"
    "for i in range(3): os.read(reader, 1)\n"
)


@assault
def daemons() -> None:
    marker = uuid.uuid4().hex
    assert run(_DAEMON, marker).ok
    assert not _alive(marker)
    subprocess.run([*PYTHON, _DAEMON, marker], check=True)
    left = _alive(marker)
    for pid in left:
        os.kill(pid, 9)
    assert len(left) == 3


@assault
def daemons_of_a_parent_that_is_killed() -> None:
    marker = uuid.uuid4().hex
    order = [*PYTHON, _DAEMON + "print('ready', flush=True)\nsignal.pause()\n", marker]
    code = f"import ramet; ramet.Sandbox(python=True).popen({order}).wait()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == b"ready\n"
        assert len(_alive(marker)) > 3
        parent.kill()
        parent.wait()
        until(lambda: not _alive(marker))


@assault
def killing_all() -> None:
    """Also what is meant for all processes reaches those of the sandbox alone."""
    with subprocess.Popen(["/bin/sleep", "1000"], **ATTACKER) as other:
        verdict = run(
            "import os, signal\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    while True: signal.pause()\n"
            "os.kill(-1, signal.SIGKILL)\n"
            "assert os.waitpid(pid, 0)[1] == signal.SIGKILL\n"
        )
        assert verdict.ok, verdict
        assert other.poll() is None
        other.kill()


# --- the first process, and what it tells -------------------------------------------------------


def _check_told(code: str) -> None:
    verdict = run(f"{code}\nimport os; os._exit(3)")
    assert (verdict.reason, verdict.exit_code) == ("exited", 3), verdict


@assault
def forged_report() -> None:
    """That of an exit with 0, on whatever there is."""
    _check_told(
        "import os, struct\n"
        "record = struct.pack('=20q', 1, *[0] * 19)\n"
        "for number in range(3, 1 << 10):\n"
        "    for path in (f'/proc/1/fd/{number}', f'/proc/self/fd/{number}'):\n"
        "        try: os.write(os.open(path, os.O_WRONLY), record)\n"
        "        except OSError: pass\n"
    )


@assault
def closed_report() -> None:
    _check_told("import os; os.closerange(3, 1 << 20)")


@assault
def limits_of_init() -> None:
    """Whoever has the same ids may set them: it must do without."""
    _check_told(
        "import os, resource as r\n"
        "for limit in 'FSIZE NOFILE NPROC SIGPENDING MEMLOCK STACK AS DATA'.split():\n"
        "    r.prlimit(1, getattr(r, f'RLIMIT_{limit}'), (0, 0))\n"
        "os.setpriority(os.PRIO_PROCESS, 1, 19)\n"
        "os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))\n"
    )


@assault
def signals_to_init() -> None:
    _check_told(
        "import os, signal\n"
        "for number in [*signal.valid_signals()] * 20: os.kill(1, number)\n"
    )  # fmt: skip


@assault
def huge_arguments() -> None:
    for args in (["/bin/true", "x" * (1 << 18)], ["x" * (1 << 18)], ["\n" * 5000]):
        verdict = Sandbox(system=True).run(args)
        assert verdict.reason == "start_failed", verdict
        assert "\n" not in (verdict.error or "\n")


@assault
def directories_as_descriptors() -> None:
    for flags in (os.O_RDONLY, os.O_PATH):
        number = os.open("/", flags)
        for given in ({"stdin": number}, {"fds": {5: number}}):
            try:
                Sandbox(python=True).run([*PYTHON, "0"], **given)
            except ValueError as error:
                assert "leads out of the sandbox" in str(error)  # noqa: PT017 - as without pytest
            else:
                raise AssertionError(f"a directory was handed on: {given}")
        os.close(number)


# --- files --------------------------------------------------------------------------------------

_CHANGES = (
    "import os\n"
    "os.chdir('/over')\n"
    "open('a', 'w').write('theirs')\n"
    "os.unlink('b')\n"
    "os.rename('c', 'd')\n"
    "os.mkdir('e')\n"
    "os.symlink('/', 'f')\n"
    "assert sorted(os.listdir()) == ['a', 'd', 'e', 'f'], os.listdir()\n"
)


@assault
def source_of_an_overlay() -> None:
    with directory() as source:
        if IS_ROOT:
            os.chown(source, ATTACKER["user"], ATTACKER["group"])
        for name in "abc":
            own(source / name, "ours")
        before = tree(source)
        verdict = run(_CHANGES, files={"/over": Overlay(source)})
        assert verdict.ok, verdict
        assert tree(source) == before
        assert run(_CHANGES, files={"/over": Bind(source, writable=True)}).ok
        assert tree(source) != before


_EXCHANGES = (
    "import ctypes, os, sys\n"
    "libc, paths = ctypes.CDLL(None), [os.fsencode(path) for path in sys.argv[1:]]\n"
    "while True: libc.renameat2(-100, paths[0], -100, paths[1], 2)\n"
)


@assault
def exchanged_sources() -> None:
    """While sandboxes start, what they show becomes a link to a secret, over and over."""
    with directory() as where:
        shown, other = where / "shown", where / "other"
        (where / "secrets").mkdir()
        (where / "secrets" / "file").write_text(SECRET)
        shown.mkdir()
        (shown / "file").write_text("no secret")
        other.symlink_to(where / "secrets")
        sandbox = Sandbox(system=True, files={"/shown": Bind(shown)})
        with subprocess.Popen([*PYTHON, _EXCHANGES, shown, other]) as exchanger:
            until(lambda: any(_trusting_read(shown) == SECRET for _ in range(1000)))
            found = [sandbox.run(["cat", "/shown/file"]) for _ in range(30)]
            exchanger.kill()
        assert {each.stdout for each in found} <= {b"", b"no secret"}
        assert {each.reason for each in found} <= {"exited", "start_failed"}


def _trusting_read(path: Path) -> str:
    """Look first, and open then."""
    return "" if path.is_symlink() else (path / "file").read_text()


_NAMES = (
    *("a b", "new\nline", os.fsdecode(b"\x80\xff"), "-rf", "a,b", "a:b", ":", "a\\b", "a\\:b"),
    *(
        'quo"te',
        "$(id)",
        "\x1b[31m",
        "*",
        "é",
        "~",
        "\\040",
        "x (deleted)",
        "=",
        "#",
        "%s",
        "x" * 200,
    ),
)


_LOOKS = (
    "import os\n"
    "for top in (b'/bind', b'/over', b'/alone', b'/file', b'/link', b'/tmpfs'):\n"
    "    for name in os.listdir(top):\n"
    "        path = b'/'.join([top, name])\n"
    "        if top in (b'/bind', b'/over'): path = b'/'.join([path, name])\n"
    "        if top == b'/link': assert os.readlink(path) == name, path\n"
    "        elif top != b'/tmpfs': assert open(path, 'rb').read() == name, path\n"
    "        print(path)\n"
)


@assault
def hostile_names() -> None:
    with directory() as where:
        for name in _NAMES:
            source = where / name
            source.mkdir()
            (source / name).write_bytes(os.fsencode(name))
            files: dict[str, Entry] = {
                f"/bind/{name}": Bind(source),
                f"/over/{name}": Overlay(source),
                f"/alone/{name}": Bind(source / name),
                f"/file/{name}": File(os.fsencode(name)),
                f"/link/{name}": Symlink(name),
                f"/tmpfs/{name}": Tmpfs(1 << 12),  # noqa: S108 - that of the sandbox
            }
            verdict = run(_LOOKS, files=files)
            assert verdict.ok, verdict
            assert len(verdict.stdout.splitlines()) == len(files)


@assault
def namespaces_within() -> None:
    """Whoever may make a user namespace has all capabilities there, but not over our mounts."""
    code = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.unshare(0x1002_0000) == 0\n"  # CLONE_NEWUSER, CLONE_NEWNS
        "assert libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0, ctypes.get_errno()\n"
        "for path in (b'/shown', b'/', b'/proc', b'/proc/keys', b'/dev'):\n"
        "    assert libc.mount(None, path, None, 32 | 4096, None) != 0, path\n"
        "    assert libc.umount2(path, 2) != 0, path\n"
        "try: open('/shown/file', 'w')\n"
        "except OSError as error: assert error.errno == 30, error\n"
        "else: assert 0\n"
    )
    with directory() as where:
        own(where / "file", "ours")
        policy = {"seccomp": False, "landlock": False}
        verdict = run(code, files={"/shown": Bind(where)}, **policy)
        assert verdict.ok, verdict


@assault
def mounts_that_come_later() -> None:
    """What is mounted in a read-only bind afterwards would be neither listed nor read-only."""
    unshare = ["unshare", "--mount"]
    if not IS_ROOT:
        unshare += ["--user", "--map-current-user", "--keep-caps"]
    code = "from tests.sandbox.assaults import _mount_later as f; f()"
    subprocess.run([*unshare, sys.executable, "-W", "error", "-c", code], check=True)


_SHARED, _DETACH = 1 << 20, 2


def _mount_later() -> None:
    looks = "import os\nprint('ready', flush=True)\ninput()\nprint(os.listdir('{}/below'))\n"
    with directory() as where:
        path = os.fsencode(where)
        syscall("mount", b"none", path, b"tmpfs", 0, None)
        syscall("mount", None, path, None, _SHARED, None)
        (where / "below").mkdir()
        options: dict[str, Any] = {"stdin": -1, "stdout": -1, "text": True}
        sandbox = Sandbox(python=True, files={"/shown": Bind(where)})
        slave = ["unshare", "--mount", "--propagation", "slave"]
        processes: list[subprocess.Popen[str]] = [
            sandbox.popen([*PYTHON, looks.format("/shown")], **options),
            subprocess.Popen([*slave, *PYTHON, looks.format(where)], **options),
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        syscall("mount", b"none", path + b"/below", b"tmpfs", 0, None)
        (where / "below" / "file").touch()
        said = [process.communicate("\n")[0] for process in processes]
        syscall("umount2", path, _DETACH)
    assert said == ["[]\n", "['file']\n"]


if __name__ == "__main__":
    print(json.dumps({name: told(function) for name, function in ASSAULTS.items()}))
