"""Popen and its functions: what they have beside subprocess, whose own tests are in peers."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from subprocess import DEVNULL, PIPE, CalledProcessError, TimeoutExpired
from typing import Any

import pytest

import ramet
from ramet import ChildError, CloneFlags, Popen
from tests.isolated import run_python
from tests.waiting import Background


def test_is_a_subprocess_popen() -> None:
    with Popen(["sh", "-c", "exit 3"]) as process:
        assert isinstance(process, subprocess.Popen)
        assert process.exit_status is None
        assert process.rusage is None
        os.fstat(process.pidfd)
        assert process.wait() == 3
    assert process.returncode == 3
    assert process.exit_status == ramet.ExitStatus(os.CLD_EXITED, 3)
    assert process.rusage is not None
    assert process.rusage.ru_maxrss > 0
    with pytest.raises(ValueError, match="closed"):
        _ = process.pidfd


def test_has_all_that_the_standard_one_has() -> None:
    with subprocess.Popen(["/bin/true"]) as standard:
        standard.wait()
    for process in (Popen(["/bin/true"]), Popen(["/bin/true"], umask=0o22)):  # in a hurry, and not
        process.wait()
        for name in vars(standard).keys() - {"pid", "_waitpid_lock", "_closed_child_pipe_fds"}:
            assert getattr(process, name) == getattr(standard, name)


def test_again() -> None:
    process = Popen(["false"])
    assert process.wait() == 1
    process.__init__(["true"])  # type: ignore[misc]
    assert process.wait() == 0


def test_subclasses() -> None:
    class Mine(Popen):
        called = False

        def _execute_child(self, *args: Any) -> None:
            self.called = True
            super()._execute_child(*args)

    with Mine(["true"]) as process:
        assert process.called


@pytest.mark.parametrize("options", [{}, {"umask": 0o22}])
def test_audit(options: dict[str, Any]) -> None:
    run_python(
        "import sys, ramet\n"
        "def hook(event, args):\n"
        "    if event == 'subprocess.Popen':\n"
        "        args[1].append('more')\n"
        "        seen.append(args)\n"
        "seen = []\n"
        "sys.addaudithook(hook)\n"
        "args = ['/bin/true']\n"
        f"with ramet.Popen(args, **{options}) as process:\n"
        "    assert process.args == ['/bin/true']\n"
        "assert seen == [('/bin/true', ['/bin/true', 'more'], None, None)]\n"
    )


def test_arguments_are_asked_once() -> None:
    class Once:
        asked = 0

        def __fspath__(self) -> str:
            self.asked += 1
            return f"argument {self.asked}"

    argument = Once()
    with pytest.raises(FileNotFoundError):
        Popen(["/missing", argument])
    assert argument.asked == 1
    with Popen(["true", argument], start_timeout=10):
        assert argument.asked == 2


def test_nothing_to_run() -> None:
    with pytest.raises(IndexError):
        Popen([])
    with pytest.raises(TypeError, match="expected str"):
        Popen([1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="embedded null"):
        Popen(["true", "a\0b"])


def test_killed() -> None:
    with Popen(["sleep", "60"]) as process:
        process.terminate()
        assert process.wait() == -signal.SIGTERM
        process.kill()  # nobody


def test_timeout() -> None:
    with Popen(["sleep", "60"]) as process:
        with pytest.raises(TimeoutExpired) as caught:
            process.wait(0.01)
        assert caught.value.cmd == ["sleep", "60"]
        process.kill()


def test_many_threads_wait() -> None:
    with Popen(["sh", "-c", "read x; exit 4"], stdin=PIPE) as process:
        waiters = [Background(process.wait) for _ in range(5)]
        assert process.stdin is not None
        process.stdin.close()
        assert [waiter.result() for waiter in waiters] == [4] * 5


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "rlimits": ({"rlimits": {resource.RLIMIT_NOFILE: 77}}, "test $(ulimit -n) = 77"),
    "nice": ({"nice": 5}, "test $(cut -d' ' -f19 /proc/$$/stat) = 5"),
    "no_new_privs": ({"no_new_privs": True}, "grep -q 'NoNewPrivs:.1' /proc/self/status"),
    "before_exec": ({"before_exec": lambda p: p.umask(0o21)}, "test $(umask) = 0021"),
    "start_timeout": ({"start_timeout": 20}, "true"),
    "exit_signal": ({"exit_signal": 0}, "true"),
    "flags": ({"flags": CloneFlags.NEWUSER}, "true"),
    "uid_map": ({"uid_map": 0, "gid_map": 0}, "test $(id -u) = 0"),
    "affinity": (
        {"affinity": {0}},
        "grep -q 'Cpus_allowed_list:.0$' /proc/self/status",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str) -> None:
    options, script = OPTIONS[name]
    try:
        done = ramet.run(["sh", "-c", script], capture_output=True, text=True, **options)
    except PermissionError:
        if "NEWUSER" not in str(options) and "uid_map" not in options:
            raise
        pytest.skip("user namespaces are not allowed here")
    assert (done.returncode, done.stderr) == (0, "")


def test_cgroup(cgroup: Path) -> None:
    done = ramet.run(["cat", "/proc/self/cgroup"], stdout=PIPE, text=True, cgroup=cgroup)
    assert done.stdout.strip().endswith(cgroup.name)


def test_preexec_fn_takes_the_standard_way() -> None:
    with Popen(["sh", "-c", "exit $((0$(umask)))"], preexec_fn=lambda: os.umask(0o10)) as process:
        assert process.wait() == 0o10
        assert process.exit_status is None
    with pytest.raises(ValueError, match=r"preexec_fn .* can't be combined with ramet's options"):
        Popen(["true"], preexec_fn=lambda: None, nice=3)


@pytest.mark.parametrize("user", [None, 0])
def test_errors(user: int | None) -> None:
    options: dict[str, Any] = {} if user is None or os.geteuid() else {"user": user}
    with pytest.raises(FileNotFoundError) as caught:
        Popen(["no-such-program"], **options)
    assert isinstance(caught.value, ChildError)
    assert caught.value.filename == "no-such-program"
    assert caught.value.call.startswith("execve(")
    with pytest.raises(NotADirectoryError) as directory:
        Popen(["true"], cwd="/proc/version", **options)
    assert directory.value.filename == "/proc/version"


def test_file_names_of_other_steps() -> None:
    """Those of before_exec are theirs."""
    with pytest.raises(FileNotFoundError) as caught:
        Popen(["true"], before_exec=lambda program: program.open("/nope"))
    assert caught.value.filename == "/nope"
    with pytest.raises(FileNotFoundError) as directory:
        Popen(["true"], cwd="/", before_exec=lambda program: program.chdir("/nope"))
    assert directory.value.filename == "/nope"


@pytest.mark.parametrize("number", [-1, 1 << 31, 1 << 32])
def test_bad_pass_fds(number: int) -> None:
    with pytest.raises(ValueError, match=r"bad value\(s\) in pass_fds"):
        Popen(["true"], pass_fds=[number])


def test_many_descriptors_and_directories() -> None:
    fds = [os.dup(0) for _ in range(300)]
    try:
        assert ramet.call(["true"], pass_fds=fds[::2]) == 0
    finally:
        for fd in fds:
            os.close(fd)
    path = ":".join(f"/missing/{i}" for i in range(1500)) + ":/bin:/usr/bin"
    assert ramet.call(["true"], env={"PATH": path}) == 0


def test_nothing_is_left_of_what_failed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(FileNotFoundError):
            Popen(["/missing"], stdin=PIPE, stdout=PIPE, stderr=PIPE)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, 0)


def test_dropped() -> None:
    """As the standard class: a warning, and it is reaped by a later start."""
    done = run_python(
        "import os, signal, warnings; warnings.simplefilter('always')\n"
        "import ramet\n"
        "process = ramet.Popen(['sleep', '60'])\n"
        "pid = process.pid\n"
        "del process\n"
        "os.kill(pid, signal.SIGKILL)\n"
        "os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\n"
        "ramet.call(['true'])\n"
        "try:\n"
        "    os.waitpid(pid, os.WNOHANG)\n"
        "except ChildProcessError:\n"
        "    print('reaped')\n",
        check=False,
    )
    assert done.stdout == "reaped\n"
    assert "still running" in done.stderr
    assert "was not waited for" not in done.stderr


def test_children_that_were_dropped_are_reaped_by_later_starts() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        children = [ramet.spawn(["true"]) for _ in range(20)]
        pidfds = [os.dup(child.pidfd) for child in children]
        children.clear()
    for pidfd in pidfds:
        select.select([pidfd], [], [])
        os.close(pidfd)
    for _ in range(20):
        ramet.spawn(["true"]).wait()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_end_of_the_interpreter() -> None:
    done = run_python(
        "import warnings; warnings.simplefilter('ignore', ResourceWarning)\n"
        "import ramet, subprocess\n"
        "process = ramet.Popen(['sleep', '0.2'], stdout=subprocess.DEVNULL, stderr=-3)\n"
    )
    assert done.stdout == ""


# --- functions ----------------------------------------------------------------------------------


def test_run() -> None:
    done = ramet.run(["cat"], input="text", capture_output=True, text=True)
    assert (done.args, done.returncode, done.stdout, done.stderr) == (["cat"], 0, "text", "")
    with pytest.raises(CalledProcessError) as failed:
        ramet.run("echo out; exit 3", shell=True, stdout=PIPE, check=True)  # noqa: S604
    assert (failed.value.returncode, failed.value.output) == (3, b"out\n")
    with pytest.raises(TimeoutExpired):
        ramet.run(["sleep", "60"], timeout=0.01)
    with pytest.raises(ValueError, match="stdin and input"):
        ramet.run(["true"], input=b"", stdin=DEVNULL)
    with pytest.raises(ValueError, match="capture_output"):
        ramet.run(["true"], capture_output=True, stdout=PIPE)


def test_call() -> None:
    assert ramet.call(["sh", "-c", "exit 3"]) == 3
    assert ramet.check_call(["true"]) == 0
    with pytest.raises(CalledProcessError) as failed:
        ramet.check_call(args=["false"])
    assert failed.value.cmd == ["false"]
    with pytest.raises(TimeoutExpired):
        ramet.call(["sleep", "60"], timeout=0.01)


def test_check_output() -> None:
    assert ramet.check_output(["echo", "x"]) == b"x\n"
    assert ramet.check_output(["cat"], input=None, text=True) == ""
    assert ramet.check_output(["cat"], input=None) == b""
    with pytest.raises(CalledProcessError):
        ramet.check_output(["false"])
    for name in ("stdout", "check"):
        with pytest.raises(ValueError, match=f"{name} argument not allowed"):
            ramet.check_output(["true"], **{name: None})


def test_import_is_lazy() -> None:
    run_python(
        "import sys, ramet\n"
        "assert 'subprocess' not in sys.modules\n"
        "assert 'Popen' in dir(ramet)\n"
        "from ramet import *\n"
        "assert Popen.__module__ == 'ramet'\n"
        "assert issubclass(Popen, sys.modules['subprocess'].Popen)\n"
        "try:\n"
        "    ramet.nothing\n"
        "except AttributeError as error:\n"
        "    assert 'nothing' in str(error)\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    assert sys.modules["ramet"] is ramet
