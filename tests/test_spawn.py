"""spawn: each option by its effect in the child."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
import shutil
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ramet
from ramet import ChildError, CloneFlags, ExitStatus, Program, _spawn, spawn
from ramet._syscalls import NUMBERS
from tests.childlib import syscall
from tests.isolated import run_function
from tests.test_stress import run_plainly
from tests.waiting import KERNEL, Background, sweep, until

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs privileges")
NEWUSER, NEWPID, NEWNET, NEWUTS = (
    CloneFlags.NEWUSER,
    CloneFlags.NEWPID,
    CloneFlags.NEWNET,
    CloneFlags.NEWUTS,
)
NOBODY = 65534


def shell(script: str, *args: str, **options: Any) -> str:
    """Run a script, and return what it writes."""
    read, write = os.pipe()
    with open(read) as output:
        try:
            child = spawn(
                ["sh", "-p", "-c", script, "-", *args],
                fds={1: write, **options.pop("fds", {})},
                **options,
            )
        finally:
            os.close(write)
        with child:
            text = output.read()
            assert child.wait().code == 0, text
    return text.strip()


def status(field: str) -> str:
    return f"sed -n 's/^{field}:[[:space:]]*//p' /proc/self/status"


# --- what is run --------------------------------------------------------------------------------


def test_args() -> None:
    assert shell('printf "%s." "$@"', "a b", "", "h\xe4") == "a b..h\xe4."


@pytest.mark.parametrize("name", ["sh", b"sh", Path("/bin/sh")])
def test_executable(name: str | bytes | Path) -> None:
    with spawn(["other", "-c", 'test "$0" = zero', "zero"], executable=name) as child:
        assert child.wait().code == 0


def test_path_is_that_of_env(tmp_path: Path) -> None:
    script = tmp_path / "only-here"
    script.write_text("#!/bin/sh\nexit 7\n")
    script.chmod(0o755)
    with spawn(["only-here"], env={"PATH": f"/missing:{tmp_path}"}) as child:
        assert child.wait().code == 7
    with pytest.raises(FileNotFoundError):
        spawn(["only-here"])


def test_env() -> None:
    assert shell("env | sort", env={"A": "1", "B": "h\xe4 ="}).splitlines()[:2] == [
        "A=1",
        "B=h\xe4 =",
    ]


@pytest.mark.parametrize(
    ("args", "error"),
    [("ls", TypeError), (b"ls", TypeError), (Path("ls"), TypeError), ([], ValueError),
     ([1], TypeError), (["a\0"], ValueError), (None, TypeError)],
)  # fmt: skip
def test_bad_args(args: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        spawn(args)


# --- descriptors --------------------------------------------------------------------------------


def identity(fd: int, pid: int | str = "self") -> str:
    return os.readlink(f"/proc/{pid}/fd/{fd}")


def sleeps(pid: int) -> bool:
    call = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return call in {str(NUMBERS.get(name)) for name in ("nanosleep", "clock_nanosleep")}


def descriptors_with(fds: dict[int, int]) -> dict[int, str]:
    """What a child has, seen from outside."""
    with spawn(["sleep", "60"], fds=fds) as child:
        try:
            until(lambda: sleeps(child.pid))  # the loader has files open until then
            numbers = map(int, os.listdir(f"/proc/{child.pid}/fd"))
            return {number: identity(number, child.pid) for number in numbers}
        finally:
            child.kill()


def test_only_what_is_given() -> None:
    read, write = os.pipe()
    os.set_inheritable(read, True)
    high = os.dup2(write, 500)
    try:
        assert sorted(descriptors_with({9: write})) == [0, 1, 2, 9]
        assert sorted(descriptors_with({500: read, 3: high})) == [0, 1, 2, 3, 500]
    finally:
        for fd in (read, write, high):
            os.close(fd)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.integers(0, 14), st.integers(0, 5), max_size=8),
    st.permutations(range(3, 9)),
)
def test_maps(choices: dict[int, int], places: list[int]) -> None:
    """However they overlap, in cycles and copies, each number stands for the right file."""
    run_in_order(choices, places)


def run_in_order(choices: dict[int, int], places: list[int]) -> None:
    """Six files at low numbers, where they get into the way of each other."""
    saved = {place: os.dup(place) for place in places if os.path.exists(f"/proc/self/fd/{place}")}
    try:
        for place in places:
            file = os.memfd_create(f"file {place}")
            if file != place:
                os.dup2(file, place, inheritable=False)
                if file not in places:
                    os.close(file)
        wanted = {number: places[choice] for number, choice in choices.items()}
        expected = {number: identity(fd) for number, fd in wanted.items()}
        for standard in range(3):
            expected.setdefault(standard, identity(standard))
        assert descriptors_with(wanted) == expected
    finally:
        for place in places:
            os.close(place)
        for place, copy in saved.items():
            os.dup2(copy, place, inheritable=False)
            os.close(copy)


def test_cycles_at_the_limit() -> None:
    run_function(check_cycles_at_the_limit)


def check_cycles_at_the_limit() -> None:
    """The copy that a cycle needs is within RLIMIT_NOFILE."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    low, high = os.memfd_create("low"), os.dup2(0, 63)
    found = descriptors_with({high: low, low: high})
    assert found == {**{n: identity(n) for n in range(3)}, 63: identity(low), low: identity(0)}


@pytest.mark.parametrize("offset", range(4))
def test_no_descriptor_of_ours_is_in_the_way(tmp_path: Path, offset: int) -> None:
    """Neither that of the working directory, nor the pidfd for `pdeathsig`."""
    directory, other = os.open(tmp_path, os.O_PATH), os.open("/usr", os.O_PATH)
    free = os.dup(0)
    os.close(free)
    real = str(tmp_path.resolve())
    try:
        fds = {directory: other, free + offset: other}
        assert shell("pwd -P", cwd=directory, fds=fds, pdeathsig=signal.SIGKILL) == real
    finally:
        os.close(directory)
        os.close(other)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_standard_descriptors_may_be_closed(number: int) -> None:
    run_function(check_closed, number)


def check_closed(number: int) -> None:
    os.close(number)
    with spawn(["sh", "-c", f"test ! -e /proc/$$/fd/{number}"]) as child:
        assert child.wait().code == 0


@pytest.mark.parametrize("fds", [{-1: 0}, {"1": 0}, {1 << 31: 0}, {5: -1}, {5: 1 << 32}])
def test_bad_numbers(fds: Any) -> None:
    with pytest.raises(ValueError, match="fds"):
        spawn(["true"], fds=fds)


def test_a_closed_descriptor() -> None:
    with pytest.raises(ChildError, match="EBADF"):
        spawn(["true"], fds={5: 999})


def test_no_descriptors_left() -> None:
    run_function(check_no_descriptors_left)


def check_no_descriptors_left() -> None:
    """At the limit: nothing but the pidfd is needed, and its want is told."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    used = [os.dup(0)]
    while used[-1] < 63:
        used.append(os.dup(0))
    with pytest.raises(OSError, match="Too many open files") as caught:
        spawn(["true"])
    assert caught.value.errno == errno.EMFILE
    os.close(used.pop())
    with spawn(["true"]) as child:
        assert child.wait().code == 0
    for fd in used:
        os.close(fd)


# --- surroundings -------------------------------------------------------------------------------


def test_cwd(tmp_path: Path) -> None:
    real = str(tmp_path.resolve())
    assert shell("pwd -P", cwd=tmp_path) == real
    fd = os.open(tmp_path, os.O_PATH)
    try:
        assert shell("pwd -P", cwd=fd) == real
    finally:
        os.close(fd)
    with pytest.raises(NotADirectoryError) as caught:
        spawn(["true"], cwd="/proc/version")
    assert caught.value.filename == "/proc/version"


def test_umask_session_and_group() -> None:
    assert shell("umask", umask=0o37) == "0037"
    pid, group, session = shell("cut -d' ' -f1,5,6 /proc/$$/stat", start_new_session=True).split()
    assert pid == group == session
    pid, group, session = shell("cut -d' ' -f1,5,6 /proc/$$/stat", process_group=0).split()
    assert pid == group
    assert session == str(os.getsid(0))


def test_signals() -> None:
    bit = 1 << signal.SIGPIPE - 1
    assert not int(shell(status("SigIgn")), 16) & bit
    assert int(shell(status("SigIgn"), restore_signals=False), 16) & bit


def test_limits() -> None:
    limits = {resource.RLIMIT_NOFILE: (50, 60), resource.RLIMIT_CORE: 0}
    script = "ulimit -Sn; ulimit -Hn; ulimit -c"
    assert shell(script, rlimits=limits).split() == ["50", "60", "0"]


def test_scheduling() -> None:
    cpu = max(os.sched_getaffinity(0))
    options = {"nice": 4, "affinity": [cpu], "scheduler": (os.SCHED_BATCH, 0), "ioprio": (2, 7)}
    assert shell("cut -d' ' -f19,41 /proc/$$/stat", **options) == f"4 {os.SCHED_BATCH}"
    assert shell(status("Cpus_allowed_list"), **options) == str(cpu)


def test_no_new_privs() -> None:
    assert shell(status("NoNewPrivs"), no_new_privs=True) == "1"


def test_cgroup(cgroup: Path) -> None:
    assert shell("cat /proc/self/cgroup", cgroup=cgroup).endswith(cgroup.name)


@root
def test_credentials() -> None:
    options = {"user": "nobody", "group": 7, "extra_groups": [8, "daemon"]}
    assert shell(status("Uid"), **options).split() == [str(NOBODY)] * 4
    assert shell(status("Gid"), **options).split() == ["7"] * 4
    assert shell(status("Groups"), **options).split() == ["1", "8"]
    with pytest.raises(KeyError):
        spawn(["true"], user="no such user")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"user": -1}, ValueError),
        ({"group": -1}, ValueError),
        ({"user": 1 << 32}, OverflowError),
        ({"extra_groups": "daemon"}, TypeError),
        ({"umask": -2}, ValueError),
        ({"cwd": -1}, ValueError),
        ({"cwd": 1 << 32}, ValueError),
        ({"nice": (1 << 32) + 3}, OverflowError),
        ({"rlimits": {7: [1, 2, 3]}}, ValueError),
        ({"timeout": "1"}, TypeError),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        spawn(["true"], **options)


def test_lists_will_do() -> None:
    assert shell("ulimit -n", rlimits={resource.RLIMIT_NOFILE: [60, 60]}, scheduler=[0, 0]) == "60"


def test_exit_signal() -> None:
    with spawn(["true"], exit_signal=0) as child:
        assert child.wait() == ExitStatus(os.CLD_EXITED, 0)


def test_before_exec(tmp_path: Path) -> None:
    seen = []

    def add(program: Program) -> None:
        seen.append(str(program))
        program.open(tmp_path / "made", os.O_CREAT | os.O_WRONLY)
        program.umask(0o11)

    assert shell("umask; ls /proc/$$/fd", before_exec=add, umask=0).split()[0] == "0011"
    assert (tmp_path / "made").exists()
    assert len(seen) == 1
    assert "execve" not in seen[0]

    def fail(program: Program) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spawn(["true"], before_exec=fail)


def test_the_parents_death() -> None:
    run_function(check_the_parents_death)


def check_the_parents_death() -> None:
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        child = spawn(["sleep", "60"], fds={3: write}, pdeathsig=signal.SIGKILL)
        os._exit(child.poll() is not None)
    os.close(write)
    os.waitpid(middle, 0)
    assert os.read(read, 1) == b""


FAN_CLASS_CONTENT, FAN_MARK_ADD, FAN_OPEN_EXEC_PERM = 4, 1, 0x40000


@pytest.mark.parametrize("how", ["spawn", "Popen"])
def test_exec_that_stalls(tmp_path: Path, how: str) -> None:
    """Exec of a file whose opening somebody must allow, who does not answer (fanotify(7))."""
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    try:
        judge = syscall("fanotify_init", FAN_CLASS_CONTENT, os.O_RDONLY)
    except PermissionError:
        pytest.skip("needs the right to use fanotify")
    name = ctypes.create_string_buffer(os.fsencode(program))
    try:
        syscall(
            "fanotify_mark", judge, FAN_MARK_ADD, FAN_OPEN_EXEC_PERM, -100, ctypes.addressof(name)
        )
    except OSError as error:
        os.close(judge)
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("this kernel has no fanotify for exec")
    ticks = []

    def tick() -> None:
        for _ in range(20):
            time.sleep(0.005)
            ticks.append(1)

    start: Callable[[], object] = {
        "spawn": lambda: spawn([program], timeout=0.2),
        "Popen": lambda: ramet.Popen([program], start_timeout=0.2),
    }[how]
    ticker = Background(tick)
    with pytest.raises(TimeoutError, match=r"execve\(.*has not ended after 0.2 seconds"):
        start()
    assert len(ticks) > 5  # the interpreter went on meanwhile
    os.close(judge)  # which allows what waits
    ticker.result()
    sweep()


def test_a_parent_that_is_dead_but_not_reaped(tmp_path: Path) -> None:
    run_function(check_a_dead_parent, str(tmp_path))


def check_a_dead_parent(directory: str) -> None:
    """It is killed before its child asks for the death signal: the program does not run."""
    fifo = os.path.join(directory, "fifo")
    os.mkfifo(fifo)
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        program = Program()
        program.open(fifo)  # waits until the parent is dead
        program.set_pdeathsig(signal.SIGURG, os.pidfd_open(os.getpid()))
        program.write(write, b"it ran")
        os.close(read)
        program.start()
        os._exit(0)
    os.close(write)
    child = Path(f"/proc/{middle}/task/{middle}/children")
    until(lambda: child.read_text().strip())
    os.kill(middle, signal.SIGKILL)
    os.waitid(os.P_PID, middle, os.WEXITED | os.WNOWAIT)
    with open(fifo, "wb"):
        assert os.read(read, 100) == b""
    os.waitpid(middle, 0)


def test_starts_that_are_dropped_end() -> None:
    run_plainly(check_starts_that_are_dropped_end)


def check_starts_that_are_dropped_end() -> None:
    """A handler that raises before the start is finished does not leave a child that waits."""
    warnings.simplefilter("ignore", ResourceWarning)
    sys.unraisablehook = deque[object](maxlen=0).append

    class HandlerError(Exception):
        pass

    armed = False

    def handler(*_: object) -> None:
        if armed:
            raise HandlerError

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
    raised = 0
    for _ in range(400):
        try:
            armed = True
            with spawn(["true"], uid_map=[(0, 0, 1), (5, 1000, 1)]) as child:
                child.wait()
            armed = False
        except HandlerError:
            raised += 1
        except PermissionError:
            break  # not allowed here
        finally:
            armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    gc.collect()
    sweep()
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def test_timeout(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(TimeoutError, match="fifo"):
        spawn(["true"], before_exec=lambda p: p.open(tmp_path / "fifo"), timeout=0.05)
    with spawn(["true"], timeout=20) as child:
        assert child.wait().code == 0


# --- namespaces ---------------------------------------------------------------------------------


def namespaces_allowed() -> bool:
    try:
        with spawn(["true"], uid_map=0) as child:
            return child.wait().code == 0
    except OSError:
        return False


needs_userns = pytest.mark.skipif(
    not namespaces_allowed(), reason="user namespaces are not allowed here"
)


@needs_userns
def test_own_ids() -> None:
    assert shell("id -u; id -g", uid_map=0, gid_map=0).split() == ["0", "0"]
    text = shell("cat /proc/self/uid_map /proc/self/setgroups", uid_map=5, gid_map=6)
    assert text.split() == ["5", str(os.geteuid()), "1", "deny"]


@needs_userns
def test_all_namespaces() -> None:
    script = "id -u; cat /proc/sys/kernel/hostname; echo $$; grep -c : /proc/net/dev"
    flags = NEWPID | NEWNET | NEWUTS
    assert shell(script, flags=flags, uid_map=0, gid_map=0, hostname="inside").split() == [
        "0",
        "inside",
        "1",
        "1",
    ]


@needs_userns
def test_new_time_namespace() -> None:
    if CloneFlags.NEWTIME not in ramet.probe().flags:
        pytest.skip("this kernel has no time namespaces")
    if KERNEL < (6, 2):
        with pytest.raises(OSError, match=r"Linux 6\.2") as caught:
            spawn(["true"], flags=CloneFlags.NEWTIME, uid_map=0)
        assert caught.value.errno == errno.EOPNOTSUPP
        return
    inside = shell("readlink /proc/self/ns/time", flags=CloneFlags.NEWTIME, uid_map=0)
    assert inside.startswith("time:[")
    assert inside != os.readlink("/proc/self/ns/time")


@root
@needs_userns
@pytest.mark.parametrize("timeout", [None, 20])
def test_maps_by_the_parent(timeout: float | None) -> None:
    options = {
        "uid_map": [(0, 1000, 10), (100, 5, 1)],
        "gid_map": [(0, 2000, 10)],
        "user": 0,
        "group": 0,
        "timeout": timeout,
    }
    assert shell("cat /proc/self/uid_map", **options).split() == [
        "0",
        "1000",
        "10",
        "100",
        "5",
        "1",
    ]
    assert shell(status("Uid"), **options).split() == ["0"] * 4
    assert shell(status("Gid"), **options).split() == ["0"] * 4


@root
@needs_userns
def test_maps_that_the_kernel_refuses() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Invalid argument"):
        spawn(["true"], uid_map=[(0, 1000, 10), (5, 2000, 10)])  # overlapping
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, 0)


@root
@needs_userns
def test_without_privileges() -> None:
    run_function(check_without_privileges)


def check_without_privileges() -> None:
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    import ctypes

    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, for /proc/self
    flags = NEWPID | NEWNET | CloneFlags.NEWNS | NEWUTS
    with spawn(["sh", "-c", "test $(id -u).$$ = 0.1"], uid_map=0, gid_map=0, flags=flags) as child:
        assert child.wait().code == 0
    with pytest.raises(PermissionError):
        spawn(["true"], uid_map=[(0, 0, 1)])
    with pytest.raises(PermissionError, match="CLONE_NEWNET needs CAP_SYS_ADMIN"):
        spawn(["true"], flags=NEWNET)


@pytest.mark.parametrize("given_map", [[], [(0, 0, 0)], [(-1, 0, 1)], [(0, 1 << 32, 1)], -1])
def test_bad_maps(given_map: Any) -> None:
    with pytest.raises(ValueError, match="uid_map"):
        spawn(["true"], uid_map=given_map)


@root
@needs_userns
def test_groups_and_a_map_of_ones_own() -> None:
    options = {"uid_map": 0, "gid_map": 0, "extra_groups": [0]}
    assert shell(status("Groups"), **options) == "0"


def test_files_are_not_shared() -> None:
    with pytest.raises(ValueError, match="CLONE_FILES"):
        spawn(["true"], flags=CloneFlags.FILES)


# --- a large, busy parent -----------------------------------------------------------------------


def test_many_threads(tmp_path: Path) -> None:
    run_function(check_many_threads)


def check_many_threads() -> None:
    """200 threads that allocate all the time, and children from several of them."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            _ = [bytes(size) for size in range(0, 20_000, 500)]
            time.sleep(0.001)

    churners = [threading.Thread(target=churn) for _ in range(200)]
    for thread in churners:
        thread.start()

    def work() -> bool:
        return all(spawn(["true"]).wait().code == 0 for _ in range(25))

    workers = [Background(work) for _ in range(4)]
    try:
        assert all(worker.result() for worker in workers)
    finally:
        stop.set()
        for thread in churners:
            thread.join()


def test_a_storm_of_signals() -> None:
    run_function(check_a_storm_of_signals)


def check_a_storm_of_signals() -> None:
    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    for _ in range(150):
        with spawn(["true"]) as child:
            assert child.wait().code == 0
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(seen) > 50


def test_50_000_spawns() -> None:
    run_plainly(check_many_spawns, 50_000)


def check_many_spawns(count: int) -> None:
    spawn(["true"]).wait()
    before = os.listdir("/proc/self/fd"), Path("/proc/self/maps").read_text().count("---p")
    for i in range(count):
        if i % 2:
            with spawn(["/bin/true"]) as child:
                assert child.wait().code == 0
        else:
            with pytest.raises(FileNotFoundError):
                spawn(["/missing"])
    assert (
        os.listdir("/proc/self/fd"),
        Path("/proc/self/maps").read_text().count("---p"),
    ) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, 0)


# --- the setup that is kept ---------------------------------------------------------------------


def test_setups_are_kept_by_their_options(tmp_path: Path) -> None:
    """And are not mixed up, nor changed by what a start adds."""
    _spawn.setup.cache_clear()
    for _ in range(3):
        assert shell("pwd -P", cwd="/usr") == "/usr"
        assert shell("pwd -P", cwd=str(tmp_path)) == str(tmp_path.resolve())
        assert shell("umask; pwd -P", cwd="/usr", umask=0o33).split() == ["0033", "/usr"]
        shell("true", cwd="/usr", before_exec=lambda p: p.umask(0))
    assert 0 < _spawn.setup.cache_info().currsize <= 20
