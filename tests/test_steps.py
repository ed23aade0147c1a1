"""Each kind of step: by its effect in the child, and when it fails."""

from __future__ import annotations

import ctypes
import errno
import os
import pty
import resource
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet import ChildError, CloneFlags, Program
from ramet._names import CAPABILITIES, flag_names
from ramet._steps import capability, capability_mask
from tests.childlib import syscall

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs privileges")
NEWNS = CloneFlags.NEWNS
NOBODY = 65534
MS_BIND, MS_REC, MS_PRIVATE, MS_RDONLY, MS_REMOUNT = 4096, 16384, 1 << 18, 1, 32


def shell(program: Program, script: str, flags: int = 0) -> str:
    """Run a script after the steps, and return what it writes."""
    program = program.copy()
    read, write = os.pipe()
    with open(read) as output:
        program.dup2(write, 1)
        program.execve("/bin/sh", ["sh", "-p", "-c", script])
        try:
            child = program.start(flags=flags)
        finally:
            os.close(write)
        with child:
            text = output.read()
            assert child.wait().code == 0, text
    return text.strip()


def status(field: str) -> str:
    return f"sed -n 's/^{field}:[[:space:]]*//p' /proc/self/status"


# --- files --------------------------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    program = Program()
    program.mkdir(tmp_path / "d", 0o700)
    program.mkdir(tmp_path / "d", tolerate=[errno.EEXIST])
    directory = program.open(tmp_path / "d", os.O_PATH)
    fd = program.open("f", os.O_CREAT | os.O_WRONLY, 0o640, dir_fd=directory)
    program.write(fd, b"written")
    program.close(fd)
    program.symlink("f", "link", dir_fd=directory)
    program.write_file("f", b"W", dir_fd=directory)
    shell(program, "true")
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "d/f").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "d/link").read_text() == "Written"


def test_open_is_close_on_exec() -> None:
    program = Program()
    fd = program.open("/dev/null")
    assert "/dev/null" not in shell(program.copy(), "readlink /proc/self/fd/* | tail -n +4; true")
    program.dup2(fd, 9)
    assert shell(program, "readlink /proc/$$/fd/9") == "/dev/null"


def test_dup2_to_itself() -> None:
    read, write = os.pipe()  # close-on-exec
    program = Program()
    program.dup2(read, read)
    assert shell(program, f"test -e /proc/$$/fd/{read} && ! test -e /proc/$$/fd/{write} && echo y")
    os.close(read)
    os.close(write)


def test_dup_above_and_close_range() -> None:
    program = Program()
    high = program.dup_above(0, 700)
    program.dup2(high, 800)
    program.close_range(700, 799)
    assert shell(program, "test -e /proc/$$/fd/800 && ! test -e /proc/$$/fd/700 && echo y") == "y"
    program = Program()
    program.dup2(0, 800)
    program.close_range(800)
    assert shell(program, "test -e /proc/$$/fd/800 || echo closed") == "closed"


def test_directories(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    program = Program()
    program.chdir(tmp_path)
    program.chdir("a")
    assert shell(program, "pwd -P") == str((tmp_path / "a").resolve())
    program = Program()
    program.fchdir(program.open(tmp_path / "a/b", os.O_PATH))
    assert shell(program, "pwd -P") == str((tmp_path / "a/b").resolve())


def test_umask() -> None:
    program = Program()
    program.umask(0o27)
    assert shell(program, "umask") == "0027"


@root
def test_chroot(tmp_path: Path) -> None:
    (tmp_path / "inside").write_text("x")
    program = Program()
    program.chroot(tmp_path)
    program.chdir("/")
    program.open("/inside")
    program.exit(0)
    with program.start() as child:
        assert child.wait().code == 0


# --- sessions and signals -----------------------------------------------------------------------


def test_session_and_group() -> None:
    program = Program()
    program.setsid()
    pid, session, group = shell(program, "cut -d' ' -f1,6,5 /proc/$$/stat").split()
    assert pid == session == group
    program = Program()
    program.setpgid()
    pid, group = shell(program, "cut -d' ' -f1,5 /proc/$$/stat").split()
    assert pid == group != str(os.getpgrp())


def test_foreground() -> None:
    leader, terminal = pty.openpty()
    program = Program()
    program.setsid()
    program.syscall("ioctl", terminal, 0x540E, 0)  # TIOCSCTTY
    program.tcsetpgrp(terminal)
    pid, foreground = shell(program, "cut -d' ' -f1,8 /proc/$$/stat").split()
    assert pid == foreground
    os.close(leader)
    os.close(terminal)


def test_signals() -> None:
    program = Program()
    program.ignore_signals([signal.SIGUSR1, signal.SIGHUP])
    program.default_signals([signal.SIGPIPE, signal.SIGHUP])
    ignored = int(shell(program, status("SigIgn")), 16)
    assert ignored >> signal.SIGUSR1 - 1 & 1
    assert not ignored >> signal.SIGPIPE - 1 & 1
    assert not ignored >> signal.SIGHUP - 1 & 1
    assert shell(Program(), status("SigIgn")) != "0" * 16  # Python ignores SIGPIPE


# --- credentials --------------------------------------------------------------------------------


@root
def test_ids() -> None:
    program = Program()
    program.setgroups([7, 9])
    program.setresgid(5, 6, 7)
    program.setresuid(-1, 1000, 1001)
    assert shell(program, status("Uid")).split()[:3] == [
        "0",
        "1000",
        "1000",
    ]  # exec saves what is effective
    assert shell(program, status("Gid")).split()[:3] == ["5", "6", "6"]
    program = Program()
    program.setgroups([])
    assert shell(program, status("Groups")) == ""


@root
def test_capabilities() -> None:
    program = Program()
    program.set_securebits(0)
    program.set_keepcaps()
    program.setresuid(NOBODY)
    wanted: list[str | int] = ["net_raw", "CAP_SYS_ADMIN", CAPABILITIES["chown"]]
    program.capset(effective=wanted, permitted=wanted, inheritable=wanted)
    program.clear_ambient()
    program.raise_ambient(["net_raw"])
    assert int(shell(program, status("CapEff")), 16) == 1 << CAPABILITIES["net_raw"]


@root
def test_bounding_set() -> None:
    program = Program()
    program.drop_bounding(["sys_boot", "mknod"])
    dropped = capability_mask(["sys_boot", "mknod"])
    assert int(shell(program, status("CapBnd")), 16) & dropped == 0


@pytest.mark.parametrize("name", ["sys_nothing", "CAP_", -1, 64])
def test_no_capability(name: str | int) -> None:
    with pytest.raises(ValueError, match="there is no capability"):
        capability(name)


# --- prctl --------------------------------------------------------------------------------------


def test_prctl() -> None:
    program = Program()
    program.set_no_new_privs()
    program.set_child_subreaper()
    program.prctl(29, 123456)  # PR_SET_TIMERSLACK
    assert shell(program, status("NoNewPrivs")) == "1"
    assert "PR_SET_TIMERSLACK, 0x1e240" in str(program)


def test_pdeathsig() -> None:
    """The child of a parent that dies dies, too."""
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        program = Program()
        program.set_pdeathsig(signal.SIGKILL, os.pidfd_open(os.getpid()))
        program.dup2(write, 5)
        program.execve("/bin/sleep", ["sleep", "60"])
        program.start()
        os._exit(0)
    os.close(write)
    os.waitpid(middle, 0)
    assert os.read(read, 1) == b""  # the last who had it is gone
    os.close(read)


# --- limits and scheduling ----------------------------------------------------------------------


def test_limits() -> None:
    program = Program()
    program.setrlimit(resource.RLIMIT_NOFILE, 60, 70)
    program.setrlimit(resource.RLIMIT_CORE, 0)
    assert shell(program, "ulimit -Sn; ulimit -Hn; ulimit -c").split() == ["60", "70", "0"]
    for bad in (-2, 1 << 64):
        with pytest.raises(ValueError, match="a limit must be"):
            program.setrlimit(resource.RLIMIT_NOFILE, bad)


def test_scheduling() -> None:
    cpu = min(os.sched_getaffinity(0))
    program = Program()
    program.setpriority(7)
    program.sched_setaffinity([cpu])
    program.ioprio_set(3)
    program.sched_setscheduler(os.SCHED_BATCH)
    nice, policy = shell(program, "cut -d' ' -f19,41 /proc/$$/stat").split()
    assert (nice, policy) == ("7", str(os.SCHED_BATCH))
    assert shell(program, status("Cpus_allowed_list")) == str(cpu)


def test_personality() -> None:
    program = Program()
    program.personality(0x0040000)  # ADDR_NO_RANDOMIZE
    assert shell(program, "cat /proc/$$/personality") == "00040000"


# --- namespaces and mounts ----------------------------------------------------------------------


@root
def test_mounts(tmp_path: Path) -> None:
    program = Program()
    program.mount(None, "/", None, MS_REC | MS_PRIVATE)
    program.mount("tmpfs", tmp_path, "tmpfs", 0, "size=64k")
    program.mkdir(tmp_path / "a")
    program.mount("/proc", tmp_path / "a", None, MS_BIND)
    program.umount2(tmp_path / "a")
    program.mount(None, tmp_path, None, MS_REMOUNT | MS_RDONLY)
    script = f"grep -c ' {tmp_path} ' /proc/self/mountinfo; touch {tmp_path}/x 2>&1 || true"
    count, said = shell(program, script, NEWNS).split(maxsplit=1)
    assert count == "1"
    assert "Read-only" in said
    assert not list(tmp_path.iterdir())


@root
def test_new_mounts(tmp_path: Path) -> None:
    program = Program()
    program.mount(None, "/", None, MS_REC | MS_PRIVATE)
    file_system = program.fsopen("tmpfs")
    program.fsconfig(file_system, 1, "size", "64k")
    program.fsconfig(file_system, 6)
    mount = program.fsmount(file_system)
    program.move_mount("", str(tmp_path), 4, from_fd=mount)
    program.mount_setattr(tmp_path, attr_set=1)  # MOUNT_ATTR_RDONLY
    tree = program.open_tree(tmp_path, 1)
    program.mkdir("/tmp/ramet-test-tree", tolerate=[errno.EEXIST])  # noqa: S108
    program.move_mount("", "/tmp/ramet-test-tree", 4, from_fd=tree)  # noqa: S108
    script = f"grep -cE ' ({tmp_path}|/tmp/ramet-test-tree) ro,' /proc/self/mountinfo"
    assert shell(program, script, NEWNS) == "2"
    os.rmdir("/tmp/ramet-test-tree")  # noqa: S108


@root
def test_pivot_root(tmp_path: Path) -> None:
    program = Program()
    program.mount(None, "/", None, MS_REC | MS_PRIVATE)
    program.mount("tmpfs", tmp_path, "tmpfs")
    program.chdir(tmp_path)
    program.mkdir("here")
    program.pivot_root(".", ".")
    program.umount2(".", 2)
    program.open("/here", os.O_PATH)
    program.exit(0)
    with program.start(flags=NEWNS) as child:
        assert child.wait().code == 0


@root
def test_names() -> None:
    program = Program()
    program.unshare(CloneFlags.NEWUTS)
    program.sethostname("one")
    program.setdomainname("two")
    script = "cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname"
    assert shell(program, script).split() == ["one", "two"]


@root
def test_setns() -> None:
    other = Program()
    other.unshare(CloneFlags.NEWUTS)
    other.sethostname("elsewhere")
    other.execve("/bin/sleep", ["sleep", "60"])
    with other.start() as child:
        program = Program()
        program.setns(program.open(f"/proc/{child.pid}/ns/uts"), CloneFlags.NEWUTS)
        assert shell(program, "cat /proc/sys/kernel/hostname") == "elsewhere"
        child.kill()


# --- confinement --------------------------------------------------------------------------------


def test_seccomp() -> None:
    load_number, jump, allow, refuse = 0x20, 0x15, 0x7FFF0000, 0x00050000 | errno.EPROTO
    from ramet._syscalls import NUMBERS

    program = Program()
    program.set_no_new_privs()
    program.seccomp(
        b"".join(
            struct.pack("=HBBI", *line)
            for line in (
                (load_number, 0, 0, 0),
                (jump, 0, 1, NUMBERS["umask"]),
                (6, 0, 0, refuse),
                (6, 0, 0, allow),
            )
        )
    )
    program.umask(0)
    with pytest.raises(ChildError, match=r"umask\(0\) failed: EPROTO"):
        program.start()
    with pytest.raises(ValueError, match="a filter has 8 bytes"):
        program.seccomp(b"1234567")


def test_landlock() -> None:
    attributes = struct.pack("=Q", 1 << 2)  # LANDLOCK_ACCESS_FS_READ_FILE
    buffer = ctypes.create_string_buffer(attributes)
    try:
        ruleset = syscall("landlock_create_ruleset", ctypes.addressof(buffer), len(attributes), 0)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EOPNOTSUPP}:
            raise
        pytest.skip("this kernel has no Landlock")
    program = Program()
    program.set_no_new_privs()
    program.landlock_restrict_self(ruleset)
    program.open("/etc/passwd")
    with pytest.raises(PermissionError, match="passwd") as caught:
        program.start()
    assert caught.value.filename == "/etc/passwd"
    os.close(ruleset)


# --- the end ------------------------------------------------------------------------------------


def test_execveat() -> None:
    for path in ("", "sh"):
        program = Program()
        fd = program.open("/bin/sh" if not path else "/bin", os.O_PATH)
        program.execveat(fd, path, ["sh", "-c", "exit $A"], {"A": "9"})
        with program.start() as child:
            assert child.wait().code == 9


@pytest.mark.parametrize(
    ("env", "error", "said"),
    [
        ({"A=": "x"}, ValueError, "illegal environment variable name"),
        ({"A\0": "x"}, ValueError, "embedded null byte"),
        ({"A": "x\0"}, ValueError, "embedded null byte"),
        ({"A": 1}, TypeError, "expected str"),
    ],
)
def test_bad_environment(env: dict[str, str], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Program().execve("/bin/true", ["true"], env)


def test_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is when the step is added, with every name and value."""
    monkeypatch.setenv("RAMET_TEST", "h\xe4 =\udcff")
    before = dict(os.environb)
    read, write = os.pipe()
    program = Program()
    program.dup2(write, 1)
    program.execve("/usr/bin/env", ["env", "-0"])
    monkeypatch.setenv("RAMET_TEST", "later")
    with program.start() as child:
        os.close(write)
        with open(read, "rb") as output:
            found = dict(line.split(b"=", 1) for line in output.read().split(b"\0") if line)
        assert child.wait().code == 0
    # The C library's, which others may have added to, and not Python's.
    assert {name: found.get(name) for name in before} == before


# --- failure of each ----------------------------------------------------------------------------

FAILURES: dict[str, tuple[Callable[[Program], object], int, str]] = {
    "openat": (lambda p: p.open("/missing"), errno.ENOENT, "/missing"),
    "write": (lambda p: p.write(999, b"x"), errno.EBADF, ""),
    "close": (lambda p: p.close(999), errno.EBADF, ""),
    "dup3": (lambda p: p.dup2(999, 5), errno.EBADF, ""),
    "fcntl": (lambda p: p.dup2(999, 999), errno.EBADF, ""),
    "fcntl, above": (lambda p: p.dup_above(999, 5), errno.EBADF, ""),
    "close_range": (lambda p: p.close_range(5, 4), errno.EINVAL, ""),
    "mkdirat": (lambda p: p.mkdir("/proc/self"), errno.EEXIST, "/proc/self"),
    "symlinkat": (lambda p: p.symlink("x", "/missing/x"), errno.ENOENT, "/missing/x"),
    "chdir": (lambda p: p.chdir("/proc/version"), errno.ENOTDIR, "/proc/version"),
    "fchdir": (lambda p: p.fchdir(999), errno.EBADF, ""),
    "chroot": (lambda p: p.chroot("/missing"), errno.ENOENT, "/missing"),
    "setsid": (lambda p: (p.setsid(), p.setsid()), errno.EPERM, ""),
    "setpgid": (lambda p: p.setpgid(1 << 30), errno.EPERM, ""),
    "ioctl": (lambda p: p.tcsetpgrp(999, 1), errno.EBADF, ""),
    "rt_sigaction": (lambda p: p.default_signals([99]), errno.EINVAL, ""),
    "prctl": (lambda p: p.set_pdeathsig(99), errno.EINVAL, ""),
    "epoll_ctl": (lambda p: p.set_pdeathsig(9, 999), errno.EBADF, ""),
    "prctl, option": (lambda p: p.prctl(999), errno.EINVAL, ""),
    "prctl, bounding": (lambda p: p.drop_bounding([63]), errno.EINVAL, ""),
    "prctl, ambient": (lambda p: p.raise_ambient([63]), errno.EINVAL, ""),
    "prlimit64": (lambda p: p.setrlimit(0, 5, 4), errno.EINVAL, ""),
    "sched_setscheduler": (lambda p: p.sched_setscheduler(99), errno.EINVAL, ""),
    "sched_setaffinity": (lambda p: p.sched_setaffinity([]), errno.EINVAL, ""),
    "ioprio_set": (lambda p: p.ioprio_set(7), errno.EINVAL, ""),
    "mount": (lambda p: p.mount("x", "/missing", "tmpfs"), errno.ENOENT, "/missing"),
    "umount2": (lambda p: p.umount2("/missing"), errno.ENOENT, "/missing"),
    "pivot_root": (lambda p: p.pivot_root("/missing", "/"), errno.ENOENT, "/missing"),
    "open_tree": (lambda p: p.open_tree("/missing"), errno.ENOENT, "/missing"),
    "move_mount": (lambda p: p.move_mount("/", "/missing"), errno.ENOENT, "/missing"),
    "fsopen": (lambda p: p.fsopen("no-such-fs"), errno.ENODEV, ""),
    "fsconfig": (lambda p: p.fsconfig(999, 6), errno.EBADF, ""),
    "fsmount": (lambda p: p.fsmount(999), errno.EBADF, ""),
    "mount_setattr": (lambda p: p.mount_setattr("/missing", attr_set=1), errno.ENOENT, "/missing"),
    "sethostname": (lambda p: p.sethostname("x" * 65), errno.EINVAL, ""),
    "setdomainname": (lambda p: p.setdomainname("x" * 65), errno.EINVAL, ""),
    "setns": (lambda p: p.setns(999), errno.EBADF, ""),
    "unshare": (lambda p: p.unshare(1 << 30 | 1), errno.EINVAL, ""),
    "seccomp": (lambda p: p.seccomp(bytes(8)), errno.EINVAL, ""),
    "landlock_restrict_self": (lambda p: p.landlock_restrict_self(999), errno.EBADF, ""),
    "execve": (lambda p: p.execve("/missing", ["x"]), errno.ENOENT, "/missing"),
    "execveat": (lambda p: p.execveat(-100, "/missing", ["x"]), errno.ENOENT, "/missing"),
}
NOT_EVEN_TRIED = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP}  # without privileges, or support


@pytest.mark.parametrize("name", FAILURES)
def test_failure(name: str) -> None:
    """The error has the index, the call, the errno, and the path if one is at fault."""
    add, number, filename = FAILURES[name]
    program = Program()
    program.syscall("getpid")
    add(program)
    with pytest.raises(ChildError) as caught:
        program.start(flags=NEWNS if os.geteuid() == 0 else 0)
    error = caught.value
    assert error.step >= 2
    assert error.steps == len(program)
    assert error.call.startswith(f"{name.partition(',')[0]}(")
    assert str(program).splitlines()[error.step - 1].endswith(error.call)
    expected = {number} if os.geteuid() == 0 else {number} | NOT_EVEN_TRIED
    assert error.errno in expected | (NOT_EVEN_TRIED - {errno.EPERM})
    if error.errno == number:
        assert error.filename == (filename or None)


@pytest.mark.parametrize(
    ("add", "error"),
    [
        (lambda p: p.setresuid(-2), ValueError),
        (lambda p: p.setresuid(1 << 32), OverflowError),
        (lambda p: p.setgroups([-1]), ValueError),
        (lambda p: p.setgroups([1 << 32]), ValueError),
        (lambda p: p.sched_setaffinity([-1]), ValueError),
        (lambda p: p.sched_setaffinity([1 << 20]), ValueError),
        (lambda p: p.capset(["nothing"]), ValueError),
        (lambda p: p.write(1, "text"), TypeError),
        (lambda p: p.setpriority(1 << 31), OverflowError),
    ],
)
def test_bad_input(add: Callable[[Program], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        add(Program())


def test_flag_names() -> None:
    table = {"A": 1, "B": 2}
    assert [flag_names(value, table) for value in (0, 1, 3, 12, 13)] == [
        "0",
        "A",
        "A|B",
        "0xc",
        "A|0xc",
    ]


def test_the_table_of_capabilities() -> None:
    """As far as this kernel knows them."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert sorted(CAPABILITIES.values()) == list(range(len(CAPABILITIES)))
    assert last < len(CAPABILITIES) or last > CAPABILITIES["checkpoint_restore"]
