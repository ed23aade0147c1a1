"""Each flag by what it does."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import ramet
from ramet import CloneFlags, _clone
from ramet._flags import spell
from tests.childlib import (
    AT_FDCWD,
    FUTEX_WAIT,
    Library,
    Script,
    Sigaction,
    Timespec,
    load,
    number,
    run,
    start,
    start_thread,
    syscall,
)
from tests.isolated import run_function
from tests.waiting import running

pytestmark = pytest.mark.usefixtures("lib")

VM, FS, FILES, SIGHAND = CloneFlags.VM, CloneFlags.FS, CloneFlags.FILES, CloneFlags.SIGHAND
VFORK, PARENT, THREAD = CloneFlags.VFORK, CloneFlags.PARENT, CloneFlags.THREAD

# How a child may come by its memory: what other flags do must not depend on it.
memory = pytest.mark.parametrize(
    "memory", [CloneFlags(0), VM, VM | VFORK], ids=["copied", "shared", "vfork"]
)
both_ways = pytest.mark.parametrize("given", [True, False], ids=["given", "not given"])


def when(given: bool, flag: CloneFlags) -> CloneFlags:
    return flag if given else CloneFlags(0)


def need(flag: CloneFlags) -> None:
    if flag not in ramet.probe().flags:
        pytest.skip(f"{flag.name} needs Linux {flag.since}: {ramet.probe().refused[flag]}")


# --- what is shared -----------------------------------------------------------------------------


@both_ways
def test_vm(call: str, lib: Library, given: bool) -> None:
    word = ctypes.c_long(41)
    assert run(lib.increment, word, when(given, VM)).code == 0
    assert word.value == (42 if given else 41)


@pytest.fixture
def _umask() -> Iterator[None]:
    before = os.umask(0o22)
    yield
    os.umask(before)


@both_ways
@memory
@pytest.mark.usefixtures("_umask")
def test_fs(
    call: str, memory: CloneFlags, given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = Script()
    script.call("chdir", b"/")
    umask = script.call("umask", 0o77)
    run(script, flags=memory | when(given, FS))
    assert umask.result == 0o22
    assert Path.cwd() == (Path("/") if given else tmp_path)
    assert os.umask(0o22) == (0o77 if given else 0o22)


@both_ways
@memory
def test_files(call: str, memory: CloneFlags, given: bool, tmp_path: Path) -> None:
    path = tmp_path / "opened by the child"
    path.touch()
    ours = os.open("/dev/null", os.O_RDONLY)
    script = Script()
    closed = script.call("close", ours)
    opened = script.call("openat", AT_FDCWD, bytes(path), os.O_RDONLY)
    with start(script, flags=memory | when(given, FILES)) as child:
        child.wait()
        table = {int(name): target for name, target in descriptors()}
    assert closed.result == 0
    assert opened.result >= 0
    assert (table.get(opened.result) == str(path)) == given
    assert (table.get(ours) == "/dev/null") != given
    os.close(opened.result if given else ours)


def descriptors() -> Iterator[tuple[str, str]]:
    for entry in Path("/proc/self/fd").iterdir():
        if entry.is_symlink():  # the listing's own is gone by now
            yield entry.name, str(entry.readlink())


SIGACTION_SET_SIZE = 8


def status_of(field: str, task: str = "self") -> str:
    for line in Path(f"/proc/{task}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return line.split(":")[1].strip()
    raise AssertionError(f"no {field}")


def ignored(number: int) -> bool:
    return bool(int(status_of("SigIgn"), 16) >> (number - 1) & 1)


@both_ways
@pytest.mark.parametrize("memory", [VM, VM | VFORK], ids=["shared", "vfork"])
def test_sighand(call: str, memory: CloneFlags, given: bool) -> None:
    assert not ignored(signal.SIGUSR2)
    script = Script()
    action = script.place(Sigaction)
    action.handler = int(signal.SIG_IGN)
    script.call("rt_sigaction", signal.SIGUSR2, action, 0, SIGACTION_SET_SIZE)
    try:
        assert run(script, flags=memory | when(given, SIGHAND)).code == 0
        assert ignored(signal.SIGUSR2) == given
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)


@pytest.fixture
def _handlers() -> Iterator[None]:
    """A Python handler for SIGUSR1, and SIGUSR2 ignored."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)


@memory
@pytest.mark.parametrize("explicit", [CloneFlags(0), CloneFlags.CLEAR_SIGHAND], ids=spell)
@pytest.mark.usefixtures("_handlers")
def test_clear_sighand(call: str, memory: CloneFlags, explicit: CloneFlags) -> None:
    """Handlers that are not shared are reset, what is ignored stays so."""
    script = Script()
    actions = {n: script.place(Sigaction) for n in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)}
    for n, action in actions.items():
        action.handler = 0xBAD
        script.call("rt_sigaction", n, 0, action, SIGACTION_SET_SIZE)
    assert run(script, flags=memory | explicit).code == 0
    assert [action.handler for action in actions.values()] == [
        signal.SIG_DFL,
        signal.SIG_IGN,
        signal.SIG_DFL,
    ]


@pytest.mark.usefixtures("_handlers")
def test_shared_handlers_are_not_reset(call: str) -> None:
    script = Script()
    action = script.place(Sigaction)
    script.call("rt_sigaction", signal.SIGUSR1, 0, action, SIGACTION_SET_SIZE)
    assert run(script, flags=VM | SIGHAND).code == 0
    assert action.handler not in {signal.SIG_DFL, signal.SIG_IGN}


@both_ways
def test_signal_mask(call: str, given: bool) -> None:
    """The caller's, but all blocked where the handlers are shared."""
    unblockable = 1 << (signal.SIGKILL - 1) | 1 << (signal.SIGSTOP - 1)
    script = Script()
    mask = script.place(ctypes.c_ulong)
    script.call("rt_sigprocmask", signal.SIG_BLOCK, 0, mask, SIGACTION_SET_SIZE)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGRTMAX})
    try:
        run(script, flags=VM | when(given, SIGHAND))
        ours = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert {signal.SIGUSR1, signal.SIGRTMAX} <= ours, "the start has changed the caller's mask"
    expected = sum(1 << (n - 1) for n in ours)
    assert mask.value == ((1 << 64) - 1 & ~unblockable if given else expected)


# kcmp(2): 0 means that two tasks have the same.
KCMP = {VM: 1, FILES: 2, FS: 3, SIGHAND: 4, CloneFlags.IO: 5, CloneFlags.SYSVSEM: 6}
IOPRIO_WHO_PROCESS, BEST_EFFORT_4 = 1, 2 << 13 | 4


@pytest.mark.parametrize("flag", KCMP, ids=spell)
def test_kernel_says_what_is_shared(call: str, flag: CloneFlags) -> None:
    # An I/O context and a list of undo values exist once they are needed; before that none is
    # the same as none. Sharing makes the list.
    syscall("ioprio_set", IOPRIO_WHO_PROCESS, 0, BEST_EFFORT_4)
    needed = when(flag == SIGHAND, VM)
    try:
        assert kcmp_child(flag, needed | flag) == 0
        assert kcmp_child(flag, needed) != 0
    except OSError as error:
        if error.errno in {errno.ENOSYS, errno.EPERM}:
            pytest.skip(f"kcmp is not to be had: {error}")
        raise


def kcmp_child(flag: CloneFlags, flags: CloneFlags) -> int:
    script = Script()
    gate = script.gate()
    with start(script, flags=flags) as child, gate:
        return syscall("kcmp", os.getpid(), child.pid, KCMP[flag], 0, 0)


# --- order, ids and the thread pointer ----------------------------------------------------------


@pytest.mark.parametrize("memory", [CloneFlags(0), VM], ids=["copied", "shared"])
def test_vfork_suspends_the_caller(call: str, memory: CloneFlags) -> None:
    script = Script()
    script.sleep(50)
    pid = script.call("getpid")
    with start(script, flags=memory | VFORK) as child:
        assert pid.result == child.pid


@pytest.mark.parametrize("memory", [CloneFlags(0), VM], ids=["copied", "shared"])
def test_caller_runs_without_vfork(call: str, memory: CloneFlags) -> None:
    script = Script()
    gate = script.gate()
    pid = script.call("getpid")
    with start(script, flags=memory) as child:
        assert pid.result == pid.NOT_MADE
        gate.open()
        child.wait()
        assert pid.result == child.pid


@memory
def test_parent_settid(call: str, lib: Library, memory: CloneFlags) -> None:
    word = ctypes.c_int()
    for flags in (memory, memory | CloneFlags.PARENT_SETTID):
        word.value = 0
        with start(lib.identity, 0, flags, ptid=word) as child:
            assert word.value == child.pid


def test_child_settid(call: str, lib: Library) -> None:
    script = Script()
    word = script.place(ctypes.c_int)
    for flags in (CloneFlags(0), VM, VM | VFORK):
        word.value = 0
        with start(script, flags=flags | CloneFlags.CHILD_SETTID, ctid=word) as child:
            child.wait()
            assert word.value == child.pid


def test_child_settid_stores_in_the_childs_memory(call: str, lib: Library) -> None:
    word = ctypes.c_int(0)
    run(lib.identity, 0, CloneFlags.CHILD_SETTID, ctid=word)
    assert word.value == 0


def test_child_cleartid(call: str) -> None:
    script = Script()
    gate = script.gate()
    word = ctypes.c_int(77)
    with start(script, flags=VM | CloneFlags.CHILD_CLEARTID, ctid=word) as child:
        assert word.value == 1
        gate.open()
        child.wait()
        assert word.value == 0


def test_child_cleartid_wakes_the_futex(call: str) -> None:
    script = Script()
    script.sleep(50)
    word = ctypes.c_int()
    patience = Timespec(10, 0)
    with start(script, flags=VM | CloneFlags.CHILD_CLEARTID, ctid=word):
        with suppress(BlockingIOError):  # the child has been quicker than us
            # Without a wake this ends in TimeoutError.
            syscall("futex", ctypes.addressof(word), FUTEX_WAIT, 1, ctypes.addressof(patience))
        assert word.value == 0


def test_a_failed_start_leaves_ctid_as_it_was(lib: Library, clone3: None) -> None:
    word = ctypes.c_int(5)
    with pytest.raises(FileExistsError):
        start(lib.identity, 0, VM | CloneFlags.CHILD_CLEARTID, ctid=word, set_tid=[os.getpid()])
    assert word.value == 5


def test_two_children_with_one_ctid(call: str, lib: Library) -> None:
    """The stack of the one that runs is not given to another when the word is cleared."""
    word = ctypes.c_int()
    flags = VM | CloneFlags.CHILD_CLEARTID
    with running(flags, ctid=word) as (first, _):
        run(lib.identity, 0, flags, ctid=word)
        assert word.value == 0
        for _ in range(3):
            assert run(lib.identity, 3, VM).code == 3
        assert first.poll() is None


def test_parent(call: str) -> None:
    run_function(check_parent, call)


def check_parent(call: str) -> None:
    """Fork, so that the child has a parent here which reaps it, and is not the test run's."""
    _clone._clone3.missing = call == "clone"
    script = Script()
    parent = script.call("getppid")
    middle = os.fork()
    if middle == 0:
        child = start(script, flags=VM | VFORK | PARENT)
        os._exit(0 if parent.result == os.getppid() and child.pid > 0 else 1)
    statuses = dict((os.waitpid(-1, 0), os.waitpid(-1, 0)))
    assert statuses.pop(middle) == 0
    assert parent.result == os.getpid()


@pytest.mark.parametrize("more", [CloneFlags(0), FS | FILES | CloneFlags.SYSVSEM, VFORK], ids=spell)
def test_thread(call: str, more: CloneFlags) -> None:
    script = Script()
    pid = script.call("getpid")
    tid = script.call("gettid")
    with start_thread(script, flags=more) as thread:
        assert thread.join() == thread.tid
    assert pid.result == os.getpid()
    assert tid.result == thread.tid != os.getpid()


@memory
def test_settls(call: str, lib: Library, memory: CloneFlags) -> None:
    result = Script().place(ctypes.c_long)
    block = ctypes.create_string_buffer(4096)
    for flags in (memory, memory | CloneFlags.SETTLS):
        result.value = 0
        run(lib.thread_pointer, result, flags, tls=block)
        assert result.value == ctypes.addressof(block)


def test_thread_pointer_without_settls(call: str, lib: Library) -> None:
    ours, theirs = ctypes.c_long(), ctypes.c_long()
    ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(lib.thread_pointer)(ctypes.addressof(ours))
    run(lib.thread_pointer, theirs, VM)
    assert theirs.value == ours.value != 0


# --- tracing ------------------------------------------------------------------------------------

PTRACE_CONT, PTRACE_SEIZE = 7, 0x4206
PTRACE_TRACE_CHILDREN = 1 << 1 | 1 << 2 | 1 << 3  # PTRACE_O_TRACEFORK, VFORK and CLONE


@pytest.mark.parametrize(
    ("flag", "options", "traced"),
    [
        (CloneFlags(0), 0, False),
        (CloneFlags.PTRACE, 0, True),
        (CloneFlags(0), PTRACE_TRACE_CHILDREN, True),
        (CloneFlags.UNTRACED, PTRACE_TRACE_CHILDREN, False),
    ],
    ids=["untold", "PTRACE", "told by the tracer", "UNTRACED"],
)
def test_tracing(call: str, flag: CloneFlags, options: int, traced: bool) -> None:
    run_function(check_tracing, call, int(flag), options, traced)


def check_tracing(call: str, flag: int, options: int, traced: bool) -> None:
    """Trace a fork of this process, which starts a child with the flag."""
    _clone._clone3.missing = call == "clone"
    script = Script()
    script.gate()
    go_read, go_write = os.pipe()
    pid_read, pid_write = os.pipe()
    tracee = os.fork()
    if tracee == 0:
        signal.alarm(20)  # the default action ends it, should the tracer fail
        os.read(go_read, 1)
        child = start(script, flags=flag)
        os.write(pid_write, str(child.pid).encode())
        signal.pause()
    syscall("ptrace", PTRACE_SEIZE, tracee, 0, options)
    os.write(go_write, b"g")
    if options and traced:
        os.waitpid(tracee, 0)  # it stops to tell of the child
        syscall("ptrace", PTRACE_CONT, tracee, 0, 0)
    pid = os.read(pid_read, 20).decode()
    tracer = int(status_of("TracerPid", pid))
    os.kill(int(pid), signal.SIGKILL)
    os.kill(tracee, signal.SIGKILL)
    assert tracer == (os.getpid() if traced else 0)


# --- namespaces ---------------------------------------------------------------------------------

NAMESPACE_FILES = {
    CloneFlags.NEWTIME: "time",
    CloneFlags.NEWNS: "mnt",
    CloneFlags.NEWCGROUP: "cgroup",
    CloneFlags.NEWUTS: "uts",
    CloneFlags.NEWIPC: "ipc",
    CloneFlags.NEWUSER: "user",
    CloneFlags.NEWPID: "pid",
    CloneFlags.NEWNET: "net",
}


def namespaces_of_child(flags: int) -> dict[CloneFlags, str]:
    """What /proc/self/ns says inside."""
    script = Script()
    links = {flag: script.place(ctypes.c_char * 64) for flag in NAMESPACE_FILES}
    for flag, link in links.items():
        path = f"/proc/self/ns/{NAMESPACE_FILES[flag]}".encode()
        script.call("readlinkat", AT_FDCWD, path, link, 63)
    run(script, flags=flags)
    return {flag: link.value.decode() for flag, link in links.items()}


def our_namespaces() -> dict[CloneFlags, str]:
    return {flag: os.readlink(f"/proc/self/ns/{name}") for flag, name in NAMESPACE_FILES.items()}


@memory
@pytest.mark.parametrize("flag", NAMESPACE_FILES, ids=spell)
def test_namespace(call: str, memory: CloneFlags, flag: CloneFlags) -> None:
    need(flag)
    if flag == CloneFlags.NEWTIME and (memory or call == "clone"):
        pytest.skip("by rule: NEWTIME is for clone3, and without VM")
    theirs, ours = namespaces_of_child(memory | flag), our_namespaces()
    changed = {other for other in NAMESPACE_FILES if theirs[other] != ours[other]}
    assert theirs[flag].startswith(NAMESPACE_FILES[flag])
    assert changed == {flag}


@memory
def test_no_namespace(call: str, memory: CloneFlags) -> None:
    assert namespaces_of_child(memory) == our_namespaces()


def test_newpid(call: str) -> None:
    script = Script()
    inside, parent = script.call("getpid"), script.call("getppid")
    with start(script, flags=VM | CloneFlags.NEWPID) as child:
        child.wait()
        assert child.pid > 1
    assert (inside.result, parent.result) == (1, 0)


def test_newuts(call: str) -> None:
    run_function(check_newuts, call)


def check_newuts(call: str) -> None:
    _clone._clone3.missing = call == "clone"
    # Should the flag be lost, then the name that is changed must not be the machine's.
    syscall("unshare", CloneFlags.NEWUTS)
    script = Script()
    names = script.place(ctypes.c_char * 65 * 6)  # struct utsname: the second is nodename
    script.call("sethostname", b"inside", 6)
    script.call("uname", names)
    before = os.uname().nodename
    assert run(script, flags=VM | CloneFlags.NEWUTS).code == 0
    assert names[1].value == b"inside"
    assert os.uname().nodename == before != "inside"


def test_newuser_unprivileged(call: str) -> None:
    run_function(check_newuser_unprivileged, call)


def check_newuser_unprivileged(call: str) -> None:
    _clone._clone3.missing = call == "clone"
    script = Script()
    uid = script.call("geteuid")
    script.call("sethostname", b"inside", 6)
    load()  # only root may read it
    if os.getuid() == 0:
        os.setuid(1000)  # not 65534, which is what an unmapped id looks like inside
    with pytest.raises(PermissionError):
        run(script, flags=VM | CloneFlags.NEWUTS)
    assert run(script, flags=VM | CloneFlags.NEWUSER | CloneFlags.NEWUTS).code == 0
    assert uid.result == int(Path("/proc/sys/kernel/overflowuid").read_text())


# --- pidfd, cgroup, ids, exit signal ------------------------------------------------------------


@memory
def test_pidfd(call: str, lib: Library, memory: CloneFlags) -> None:
    word = ctypes.c_int()
    for flags, options in (
        (CloneFlags(0), {}),
        (CloneFlags.PIDFD, {}),
        (CloneFlags.PIDFD, {"ptid": word}),
    ):
        with start(lib.identity, 3, memory | flags, **options) as child:
            info = Path(f"/proc/self/fdinfo/{child.pidfd}").read_text()
            assert f"\nPid:\t{child.pid}\n" in info
            assert not os.get_inheritable(child.pidfd)
            assert child.wait().code == 3
            assert select.select([child], [], [], 0)[0] == [child]


@pytest.mark.parametrize("kind", ["path", "string", "descriptor", "object"])
@pytest.mark.usefixtures("clone3")
def test_into_cgroup(cgroup: Path, kind: str) -> None:
    need(CloneFlags.INTO_CGROUP)
    script = Script()
    gate = script.gate()
    descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    forms: dict[str, object] = {
        "path": cgroup,
        "string": str(cgroup),
        "descriptor": descriptor,
        "object": HasDescriptor(descriptor),
    }
    try:
        with start(script, flags=VM, cgroup=forms[kind]) as child, gate:
            lines = Path(f"/proc/{child.pid}/cgroup").read_text().splitlines()
            (line,) = (line for line in lines if line.startswith("0::"))
            assert line.endswith(f"/{cgroup.name}")
    finally:
        os.close(descriptor)


class HasDescriptor:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor


def free_pid() -> int:
    """A pid that nothing has, far from those that are given out next."""
    highest = int(Path("/proc/sys/kernel/pid_max").read_text()) - 1
    return next(pid for pid in range(highest, 1, -1) if not Path(f"/proc/{pid}").exists())


def need_set_tid() -> None:
    if "set_tid" not in ramet.probe().fields:
        pytest.skip("set_tid needs Linux 5.5")


@memory
@pytest.mark.usefixtures("clone3")
def test_set_tid(memory: CloneFlags) -> None:
    need_set_tid()
    pid = free_pid()
    script = Script()
    inside = script.call("getpid")
    for flags, ids, expected in (
        (CloneFlags(0), [pid], pid),
        (CloneFlags.NEWPID, [1, pid], 1),
        (CloneFlags.NEWPID, [1], 1),
    ):
        with start(script, flags=memory | flags, set_tid=ids) as child:
            child.wait()
            assert child.pid == pid or len(ids) == 1 == expected
            assert inside.result == expected


@pytest.mark.usefixtures("clone3")
def test_set_tid_that_is_taken(lib: Library) -> None:
    need_set_tid()
    with pytest.raises(FileExistsError, match=rf"set_tid=\[{os.getpid()}\].*with that id exists"):
        start(lib.identity, flags=VM, set_tid=[os.getpid()])


@memory
@pytest.mark.parametrize("exit_signal", [signal.SIGUSR1, signal.SIGRTMAX, signal.SIGCHLD, None])
def test_exit_signal(call: str, memory: CloneFlags, exit_signal: signal.Signals | None) -> None:
    number = None if exit_signal is None else int(exit_signal)
    run_function(check_exit_signal, call, int(memory), number)


def check_exit_signal(call: str, memory: int, exit_signal: int | None) -> None:
    _clone._clone3.missing = call == "clone"
    expected = exit_signal or signal.SIGCHLD
    signal.pthread_sigmask(signal.SIG_BLOCK, {expected})
    with start(load().identity, 5, memory, exit_signal=exit_signal) as child:
        info = signal.sigtimedwait({expected}, 10)
        assert info is not None
        assert (info.si_pid, info.si_code, info.si_status) == (child.pid, os.CLD_EXITED, 5)
        assert child.wait().code == 5


@memory
def test_no_exit_signal(call: str, memory: CloneFlags) -> None:
    run_function(check_no_exit_signal, call, int(memory))


def check_no_exit_signal(call: str, memory: int) -> None:
    _clone._clone3.missing = call == "clone"
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    assert run(load().identity, 5, memory, exit_signal=0).code == 5
    assert signal.sigtimedwait({signal.SIGCHLD}, 0) is None


# --- Linux 7.1 ----------------------------------------------------------------------------------


def test_autoreap(lib: Library) -> None:
    need(CloneFlags.AUTOREAP)
    with start(lib.identity, 5, VM | CloneFlags.AUTOREAP) as child:
        select.select([child], [], [])
        with pytest.raises(ChildProcessError):
            os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        assert child.wait().code == 5


@both_ways
def test_nnp(given: bool) -> None:
    need(CloneFlags.NNP)
    pr_get_no_new_privs = 39
    script = Script()
    inside = script.call("prctl", pr_get_no_new_privs, 0, 0, 0, 0)
    run(script, flags=VM | when(given, CloneFlags.NNP))
    assert inside.result == given
    assert status_of("NoNewPrivs") == "0"


def test_pidfd_autokill() -> None:
    need(CloneFlags.PIDFD_AUTOKILL)
    script = Script()
    gate = script.gate()
    flags = VM | CloneFlags.AUTOREAP | CloneFlags.NNP | CloneFlags.PIDFD_AUTOKILL
    child = start(script, flags=flags | CloneFlags.PIDFD)
    other = os.pidfd_open(child.pid)
    with gate:
        child.close()
        assert select.select([other], [], [], 10)[0] == [other]
    os.close(other)


def test_empty_mntns() -> None:
    need(CloneFlags.EMPTY_MNTNS)
    script = Script()
    opened = script.call("openat", AT_FDCWD, b"/proc/self", os.O_RDONLY)
    gate = script.gate()
    with start(script, flags=VM | CloneFlags.EMPTY_MNTNS) as child, gate:
        assert os.readlink(f"/proc/{child.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
        gate.open()
        child.wait()
        assert opened.result == -errno.ENOENT


# --- the library's other functions --------------------------------------------------------------


@memory
def test_exit_group_and_exec(call: str, memory: CloneFlags) -> None:
    script = Script()
    script.call("exit_group", 9)
    assert run(script, flags=memory).code == 9
    script = Script()
    arguments = script.place(ctypes.c_void_p * 2)
    arguments[0] = ctypes.addressof(script.string(b"true"))
    script.call("execve", b"/bin/true", arguments, 0)
    assert run(script, flags=memory).code == 0


@memory
def test_killed(call: str, lib: Library, memory: CloneFlags) -> None:
    assert run(lib.raise_signal, signal.SIGTERM, memory).signal == signal.SIGTERM
    assert run(lib.write_to_null, 0, memory).signal == signal.SIGSEGV


@memory
def test_overflow_meets_the_guard_page(call: str, lib: Library, memory: CloneFlags) -> None:
    assert run(lib.overflow, 0, memory, stack_size=16384).signal == signal.SIGSEGV


def test_numbers_are_the_kernels() -> None:
    assert number("clone3") == 435
