"""Attacks on a sandbox, each a function that returns whether it succeeded.

As a program it makes those that it is told to, each in a process of its own, and prints what came
of them; or it is the victim of the others. It needs the standard library alone.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

SECRET = "what nobody in a sandbox may know"  # noqa: S105 - for these tests
KEY = "ramet-tests-key"  # in the session keyring of who starts the sandbox
SUCCEEDED, FAILED, BROKEN = "succeeded", "failed", "broken"


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What is attacked.

    Attributes:
        secret: a file outside, with `SECRET`.
        readonly: a directory that the sandbox has read-only, with a file for each of `CHANGES`.
        space: a directory that may be written to, in which there is not much room.
        setuid: a copy of id(1) with the set-user-ID bit of user 0; "" if that cannot be had.
        victim: the pid of a process outside, with the same ids.
        address: of `SECRET` in its memory.
        port: of 127.0.0.1, where it listens.
        name: of its abstract socket, its message queue and its file in /dev/shm.
        path: of its socket in the file system.
        key: of its System V shared memory, with `SECRET`.
        init: the first process of the sandbox, or a process outside that stands for it.
    """

    secret: str
    readonly: str
    space: str
    setuid: str
    victim: int
    address: int
    port: int
    name: str
    path: str
    key: int
    init: int


Attack = Callable[[Targets], bool]

# Where an attack is shown to succeed.
HOST = "a process outside"
ROOT = "a process outside, of user 0"
NAMESPACE = "a process outside, with all capabilities in a user namespace"
UNGUARDED = "a sandbox with all capabilities, without seccomp and Landlock"


class Probe(NamedTuple):
    """An attack, and how it is shown that it would work.

    Attributes:
        attack: the attack.
        where: there it succeeds.
        by_errno: it would do harm there, so it is one that fails; but with another errno.
        sysctls: lowest and highest values with which it succeeds; where there is none it does.
    """

    attack: Attack
    where: str
    by_errno: bool = False
    sysctls: Mapping[str, tuple[int, int]] = {}


PROBES: dict[str, Probe] = {}


def probe(
    where: str,
    *,
    name: str | None = None,
    by_errno: bool = False,
    **sysctls: tuple[int, int],
) -> Callable[[Attack], Attack]:
    def add(attack: Attack) -> Attack:
        values = {key.replace("__", "/"): both for key, both in sysctls.items()}
        PROBES[name or attack.__name__] = Probe(attack, where, by_errno, values)
        return attack

    return add


# --- system calls -------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
numbers: dict[str, int] = {}
"""Of system calls; whoever starts this knows them."""


def syscall(name: str | int, *args: object) -> int:
    number = numbers.get(name) if isinstance(name, str) else name
    if number is None:  # this architecture does not have it
        raise OSError(errno.ENOSYS, name)
    words = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def calls(name: str, *args: object) -> Attack:
    """An attack that is one system call, which returns no error."""

    def attack(_: Targets) -> bool:
        syscall(name, *args)
        return True

    return attack


_AT_FDCWD = -100
_KEYCTL_JOIN, _KEYCTL_SEARCH, _KEYCTL_READ, _SESSION_KEYRING = 1, 10, 11, -3
_NEWUTS, _NEWNS, _NEWUSER = 0x0400_0000, 0x0002_0000, 0x1000_0000


# --- files --------------------------------------------------------------------------------------


def _knows(path: str | Path) -> bool:
    return SECRET in Path(path).read_text()


@probe(HOST)
def read_a_file_outside(t: Targets) -> bool:
    return _knows(t.secret)


@probe(HOST)
def climb_out(t: Targets) -> bool:
    return _knows("../" * 40 + t.secret)


@probe(HOST)
def follow_a_link_outside(t: Targets) -> bool:
    link = Path(t.space, "link")
    link.symlink_to(t.secret)
    return _knows(link)


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": lambda file: file.write_text("theirs"),
    "truncate": lambda file: os.truncate(file, 0),
    "chmod": lambda file: file.chmod(0o4777),
    "utime": os.utime,
    "unlink": os.unlink,
    "rename": lambda file: file.rename(file.with_name("renamed")),
    "link": lambda file: os.link(file, file.with_name("linked")),
    "symlink": lambda file: os.symlink("/", file.with_name("symlink-made")),
    "mkdir": lambda file: file.with_name("directory-made").mkdir(),
    "mkfifo": lambda file: os.mkfifo(file.with_name("fifo-made")),
    "bind": lambda file: socket.socket(socket.AF_UNIX).bind(str(file.with_name("socket-made"))),
    "setxattr": lambda file: os.setxattr(file, "user.x", b"theirs"),
}


def _change(how: str, t: Targets) -> bool:
    CHANGES[how](Path(t.readonly, how))
    return True


for _how in CHANGES:
    probe(HOST, name=f"{_how}_in_a_readonly_bind")(partial(_change, _how))


@probe(HOST)
def hold_up_who_writes(t: Targets) -> bool:
    """By a lease of a file that may be read."""
    with open(f"{t.readonly}/utime") as file:
        return fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK) == 0


_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _DETACH = 1, 2, 4, 32, 4096, 2


@probe(UNGUARDED)
def remount(t: Targets) -> bool:
    flags = _REMOUNT | _BIND | _NOSUID | _NODEV
    syscall("mount", None, t.readonly.encode(), None, flags, None)
    return _change("write", t)


@probe(UNGUARDED)
def change_the_attributes_of_a_mount(t: Targets) -> bool:
    attributes = struct.pack("=4Q", 0, _RDONLY, 0, 0)
    syscall("mount_setattr", _AT_FDCWD, t.readonly.encode(), 0, attributes, len(attributes))
    return _change("write", t)


def _mount(kind: str, options: str, t: Targets) -> bool:
    for name in ("where", "upper", "work"):
        Path(t.space, name).mkdir(exist_ok=True)
    data = options.format(t.readonly, t.space).encode()
    syscall("mount", b"none", f"{t.space}/where".encode(), kind.encode(), 0, data)
    return True


probe(UNGUARDED, name="mount_a_tmpfs")(partial(_mount, "tmpfs", ""))
probe(UNGUARDED, name="mount_an_overlay")(
    partial(_mount, "overlay", "lowerdir={0},upperdir={1}/upper,workdir={1}/work")
)
for _kind in ("tmpfs", "proc", "overlay", "fuse"):
    probe(UNGUARDED, name=f"fsopen_{_kind}")(calls("fsopen", _kind.encode(), 0))
probe(UNGUARDED, name="copy_a_mount")(calls("open_tree", _AT_FDCWD, b"/", 1))
probe(UNGUARDED, name="pivot_root", by_errno=True)(calls("pivot_root", b"/", b"/no-such"))


@probe(UNGUARDED)
def unmount(t: Targets) -> bool:
    syscall("umount2", t.readonly.encode(), _DETACH)
    return True


@probe(NAMESPACE)
def escape_by_chroot(t: Targets) -> bool:
    before = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.chroot(t.space)
    os.fchdir(before)
    os.chroot("../" * 40 + ".")
    return _knows(t.secret)


@probe(ROOT)
def open_by_handle(t: Targets) -> bool:
    """As "shocker" did: the number of a file leads to it, wherever it is mounted."""
    size = 128
    handle = ctypes.create_string_buffer(struct.pack("=Ii", size, 0) + bytes(size))
    mount = ctypes.c_int()
    path = f"{t.readonly}/utime".encode()
    syscall("name_to_handle_at", _AT_FDCWD, path, handle, ctypes.byref(mount), 0)
    directory = os.open(t.readonly, os.O_RDONLY)
    return syscall("open_by_handle_at", directory, handle, os.O_RDONLY) >= 0


def _make_device(kind: int, major: int, minor: int, t: Targets) -> bool:
    os.mknod(f"{t.space}/device-{minor}", kind | 0o600, os.makedev(major, minor))
    return True


probe(ROOT, name="make_a_disk")(partial(_make_device, stat.S_IFBLK, 8, 0))
probe(ROOT, name="make_the_memory")(partial(_make_device, stat.S_IFCHR, 1, 1))


def _opens(path: str, flags: int, _: Targets) -> bool:
    os.close(os.open(path, flags))
    return True


for _path, _flags in {
    "/proc/sys/kernel/core_pattern": os.O_WRONLY,
    "/proc/sys/kernel/hostname": os.O_WRONLY,
    "/proc/sys/vm/drop_caches": os.O_WRONLY,
    "/proc/sysrq-trigger": os.O_WRONLY,
    "/proc/kcore": os.O_RDONLY,
    "/proc/kmsg": os.O_RDONLY,
    "/dev/kmsg": os.O_RDONLY,
}.items():
    probe(ROOT, name=f"open{_path.replace('/', '_')}")(partial(_opens, _path, _flags))
probe(HOST, name="write_proc_self_oom_score_adj")(
    partial(_opens, "/proc/self/oom_score_adj", os.O_WRONLY)
)


@probe(HOST)
def look_at_sysfs(t: Targets) -> bool:
    return bool(os.listdir("/sys/kernel"))


@probe(HOST)
def run_a_setuid_program(t: Targets) -> bool:
    said = subprocess.run([t.setuid, "-u"], stdout=subprocess.PIPE, check=True).stdout
    return int(said) != os.geteuid()


# --- descriptors --------------------------------------------------------------------------------


def _leaks() -> Iterator[int]:
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing
            if stat.S_ISDIR(os.stat(int(name)).st_mode):
                yield int(name)


@probe(HOST)
def use_an_inherited_directory(t: Targets) -> bool:
    for directory in _leaks():
        with open(os.open(os.path.basename(t.secret), os.O_RDONLY, dir_fd=directory)) as file:
            return SECRET in file.read()
    return False


@probe(HOST)
def write_to_what_may_be_read(t: Targets) -> bool:
    """Standard input is a file of the host, opened read-only."""
    with open("/proc/self/fd/0", "w") as file:
        file.write("theirs")
    return True


# --- processes of the host ----------------------------------------------------------------------


@probe(HOST)
def see_a_process(t: Targets) -> bool:
    return str(t.victim) in os.listdir("/proc")


@probe(HOST)
def read_the_root_of_a_process(t: Targets) -> bool:
    return _knows(f"/proc/{t.victim}/root/{t.secret}")


@probe(HOST)
def read_the_environment_of_a_process(t: Targets) -> bool:
    return bool(Path(f"/proc/{t.victim}/environ").read_bytes())


@probe(HOST)
def read_the_memory_of_a_process(t: Targets) -> bool:
    with open(f"/proc/{t.victim}/mem", "rb", buffering=0) as file:
        file.seek(t.address)
        return file.read(len(SECRET)) == SECRET.encode()


@probe(HOST)
def process_vm_readv(t: Targets) -> bool:
    found = ctypes.create_string_buffer(len(SECRET))
    here = struct.pack("=QQ", ctypes.addressof(found), len(found))
    there = struct.pack("=QQ", t.address, len(found))
    syscall("process_vm_readv", t.victim, here, 1, there, 1, 0)
    return found.raw == SECRET.encode()


_PTRACE_SEIZE = 0x4206


@probe(HOST)
def trace_a_process(t: Targets) -> bool:
    syscall("ptrace", _PTRACE_SEIZE, t.victim, 0, 0)
    return True


@probe(HOST)
def trace_a_child(t: Targets) -> bool:
    """No harm by itself, but much of the kernel is behind it."""
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        syscall("ptrace", _PTRACE_SEIZE, child, 0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
    return True


@probe(HOST)
def take_a_descriptor_of_a_process(t: Targets) -> bool:
    return syscall("pidfd_getfd", os.pidfd_open(t.victim), 0, 0) >= 0


@probe(HOST)
def signal_a_process(t: Targets) -> bool:
    os.kill(t.victim, signal.SIGUSR1)
    return True


@probe(HOST)
def signal_a_process_by_pidfd(t: Targets) -> bool:
    signal.pidfd_send_signal(os.pidfd_open(t.victim), signal.SIGUSR1)
    return True


@probe(HOST)
def limit_a_process(t: Targets) -> bool:
    limits = resource.prlimit(t.victim, resource.RLIMIT_CORE)
    resource.prlimit(t.victim, resource.RLIMIT_CORE, limits)
    return True


@probe(HOST)
def slow_a_process_down(t: Targets) -> bool:
    os.setpriority(os.PRIO_PROCESS, t.victim, 10)
    return True


@probe(HOST)
def join_a_process_group(t: Targets) -> bool:
    os.kill(-os.getpgid(t.victim), 0)
    return True


# --- the sandbox's first process ----------------------------------------------------------------


@probe(UNGUARDED)
def trace_init(t: Targets) -> bool:
    syscall("ptrace", _PTRACE_SEIZE, t.init, 0, 0)
    return True


@probe(UNGUARDED)
def read_the_memory_of_init(t: Targets) -> bool:
    first = Path(f"/proc/{t.init}/maps").read_text().partition("-")[0]
    with open(f"/proc/{t.init}/mem", "rb", buffering=0) as file:
        file.seek(int(first, 16))
        return bool(file.read(8))


@probe(UNGUARDED)
def open_the_program_of_init(t: Targets) -> bool:
    """It is a file of the host, and whoever can write to it runs there."""
    return _opens(f"/proc/{t.init}/exe", os.O_RDONLY, t)


@probe(UNGUARDED)
def take_the_report(t: Targets) -> bool:
    """Whoever has it can say how the program has ended."""
    init = os.pidfd_open(t.init)
    for number in range(32):
        with suppress(OSError):
            taken = syscall("pidfd_getfd", init, number, 0)
            if stat.S_ISFIFO(os.fstat(taken).st_mode):
                return True
    return False


@probe(UNGUARDED)
def list_the_descriptors_of_init(t: Targets) -> bool:
    links = [f"/proc/{t.init}/fd/{number}" for number in os.listdir(f"/proc/{t.init}/fd")]
    return any(os.readlink(link) for link in links)


def _state(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return "X"
    return text.rpartition(")")[2].split()[0]


def _signal_init(number: signal.Signals, states: str, t: Targets) -> bool:
    os.kill(t.init, number)
    time.sleep(0.05)
    return _state(t.init) in states


probe(HOST, name="stop_init")(partial(_signal_init, signal.SIGSTOP, "T"))
probe(HOST, name="kill_init")(partial(_signal_init, signal.SIGKILL, "XZ"))


# --- talking to the host ------------------------------------------------------------------------


def _connects(family: int, address: object, kind: int = socket.SOCK_STREAM) -> bool:
    with socket.socket(family, kind) as one:
        one.connect(address)  # type: ignore[arg-type]
    return True


@probe(HOST)
def connect_to_an_abstract_socket(t: Targets) -> bool:
    return _connects(socket.AF_UNIX, f"\0{t.name}")


@probe(HOST)
def connect_to_a_socket(t: Targets) -> bool:
    return _connects(socket.AF_UNIX, t.path)


@probe(HOST)
def connect_by_network(t: Targets) -> bool:
    return _connects(socket.AF_INET, ("127.0.0.1", t.port))


@probe(HOST)
def see_the_sockets_of_the_host(t: Targets) -> bool:
    return f"{t.port:04X}" in Path("/proc/net/tcp").read_text()


@probe(UNGUARDED)
def open_a_raw_socket(t: Targets) -> bool:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    return True


@probe(UNGUARDED)
def open_a_packet_socket(t: Targets) -> bool:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    return True


@probe(UNGUARDED)
def take_the_network_down(t: Targets) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, 0x8914, b"lo".ljust(40, b"\0"))  # SIOCSIFFLAGS
    return True


@probe(UNGUARDED)
def add_a_network_device(t: Targets) -> bool:
    """A bridge, by RTM_NEWLINK, rtnetlink(7)."""
    info = struct.pack("=HHHH8s", 16, 18, 11, 1, b"bridge")  # IFLA_LINKINFO, IFLA_INFO_KIND
    header = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
    flags = 0x1 | 0x4 | 0x400 | 0x200  # NLM_F_REQUEST, ACK, CREATE, EXCL
    size = 16 + len(header) + len(info)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as one:
        one.sendto(struct.pack("=IHHII", size, 16, flags, 1, 0) + header + info, (0, 0))
        error = struct.unpack_from("=i", one.recv(4096), 16)[0]
    if error:
        raise OSError(-error, "RTM_NEWLINK")
    return True


@probe(HOST)
def open_vsock(t: Targets) -> bool:
    socket.socket(40, socket.SOCK_STREAM).close()
    return True


@probe(HOST)
def read_shared_memory(t: Targets) -> bool:
    return _knows(f"/dev/shm/{t.name}")  # noqa: S108 - that of the host


@probe(HOST)
def read_system_v_shared_memory(t: Targets) -> bool:
    memory = syscall("shmget", t.key, 0, 0)
    return ctypes.string_at(syscall("shmat", memory, None, 0o10000)) == SECRET.encode()


@probe(HOST)
def open_a_message_queue(t: Targets) -> bool:
    return syscall("mq_open", t.name.encode(), os.O_RDONLY, 0, None) >= 0


@probe(HOST)
def see_a_key(t: Targets) -> bool:
    return KEY in Path("/proc/keys").read_text()


@probe(HOST)
def read_a_key(t: Targets) -> bool:
    """What our session has, whoever inherits that session has, too."""
    key = syscall("keyctl", _KEYCTL_SEARCH, _SESSION_KEYRING, b"user", KEY.encode(), 0)
    data = ctypes.create_string_buffer(len(SECRET))
    syscall("keyctl", _KEYCTL_READ, key, data, len(data))
    return data.raw == SECRET.encode()


# --- the kernel ---------------------------------------------------------------------------------


probe(HOST, name="unshare_a_user_namespace")(calls("unshare", _NEWUSER))
probe(UNGUARDED, name="unshare_mounts")(calls("unshare", _NEWNS))
probe(UNGUARDED, name="set_the_host_name")(calls("sethostname", b"theirs", 6))


@probe(HOST)
def clone_a_user_namespace(t: Targets) -> bool:
    return _forks("clone", _NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)


@probe(HOST)
def clone3_a_user_namespace(t: Targets) -> bool:
    arguments = struct.pack("=8Q", _NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    return _forks("clone3", arguments, len(arguments))


def _forks(name: str, *args: object) -> bool:
    child = syscall(name, *args)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return True


@probe(UNGUARDED)
def enter_a_namespace(t: Targets) -> bool:
    syscall("setns", os.open("/proc/self/ns/uts", os.O_RDONLY), _NEWUTS)
    return True


@probe(HOST)
def unshare_by_the_calls_of_i386(t: Targets) -> bool:
    """Numbers of system calls mean other calls there."""
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOSYS, "int 0x80")
    code = bytes.fromhex("53 b8 36010000 bb 00000010 cd80 5b c3")  # unshare(CLONE_NEWUSER)
    memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    result = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    if result < 0:
        raise OSError(-result, "int 0x80")
    return True


@probe(HOST)
def unshare_by_the_calls_of_x32(t: Targets) -> bool:
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOSYS, "x32")
    syscall(0x4000_0000 | numbers["unshare"], _NEWUSER)
    return True


probe(HOST, name="personality")(calls("personality", 0x0040_0000))  # READ_IMPLIES_EXEC
probe(HOST, name="add_a_key")(calls("add_key", b"user", b"ramet", b"x", 1, -2))
probe(HOST, name="keyctl")(calls("keyctl", 0, -2, 1))
probe(HOST, name="userfaultfd")(calls("userfaultfd", 1))
probe(HOST, name="fanotify")(calls("fanotify_init", 0x200, 0))
probe(HOST, name="io_uring", kernel__io_uring_disabled=(0, 0))(
    calls("io_uring_setup", 1, ctypes.create_string_buffer(120))
)
# struct perf_event_attr: PERF_TYPE_SOFTWARE, its size, PERF_COUNT_SW_CPU_CLOCK, exclude_kernel.
probe(HOST, name="perf_event_open", kernel__perf_event_paranoid=(-1, 2))(
    calls("perf_event_open", struct.pack("=IIQ24xQ64x", 1, 112, 0, 1 << 5), 0, -1, -1, 0)
)
probe(ROOT, name="bpf")(calls("bpf", 0, struct.pack("=4I56x", 2, 4, 4, 1), 72))
probe(ROOT, name="kernel_log")(calls("syslog", 10, None, 0))
probe(ROOT, name="iopl")(calls("iopl", 3))
probe(ROOT, name="ioperm")(calls("ioperm", 0x80, 1, 1))
probe(ROOT, name="higher_priority")(calls("setpriority", 0, 0, -20))
probe(ROOT, name="realtime")(calls("sched_setscheduler", 0, 1, struct.pack("=i", 1)))
probe(ROOT, name="become_another_user")(calls("setuid", 12345))
probe(ROOT, name="join_a_group")(calls("setgroups", 1, struct.pack("=I", 6)))
probe(UNGUARDED, name="take_capabilities")(
    calls("capset", struct.pack("=Ii", 0x2008_0522, 0), struct.pack("=6I", 1, 1, 0, 0, 0, 0))
)
probe(HOST, name="raise_a_limit")(
    calls("prlimit64", 0, resource.RLIMIT_CORE, struct.pack("=2Q", 1 << 20, 1 << 20), None)
)

_IMPOSSIBLE = struct.pack("=qq", 0, -1)  # no time of day
for _name, _args in {
    "init_module": (None, 0, b""),
    "finit_module": (-1, b"", 0),
    "delete_module": (b"no-such-module", os.O_NONBLOCK),
    "kexec_load": (0, 0, None, -1),
    "kexec_file_load": (-1, -1, 0, None, 0),
    "reboot": (0, 0, 0, None),
    "swapon": (b"/no/such/file", 0),
    "swapoff": (b"/no/such/file",),
    "acct": (b"/no/such/file",),
    "settimeofday": (_IMPOSSIBLE, None),
    "clock_settime": (0, _IMPOSSIBLE),
}.items():
    probe(ROOT, name=_name, by_errno=True)(calls(_name, *_args))
probe(HOST, name="quotactl_fd", by_errno=True)(calls("quotactl_fd", -1, 0, 0, None))
probe(HOST, name="process_madvise", by_errno=True)(calls("process_madvise", -1, None, 0, 0, 0))
probe(HOST, name="mbind", by_errno=True)(calls("mbind", 1, 1, -1, None, 0, 0))


# --- terminals ----------------------------------------------------------------------------------

_TIOCSCTTY, _TIOCSTI, _TIOCLINUX = 0x540E, 0x5412, 0x541C


def _terminal() -> int:
    """A terminal of our own, open until our end."""
    _, slave = os.openpty()
    os.setsid()
    fcntl.ioctl(slave, _TIOCSCTTY, 0)
    return slave


@probe(HOST, dev__tty__legacy_tiocsti=(1, 1))
def type_into_a_terminal(t: Targets) -> bool:
    slave = _terminal()
    for character in b"x", b"\n":
        fcntl.ioctl(slave, _TIOCSTI, character)
    return os.read(slave, 10) == b"x\n"


@probe(HOST, by_errno=True)
def paste_into_a_console(t: Targets) -> bool:
    """Outside it is no console, which is another matter."""
    fcntl.ioctl(_terminal(), _TIOCLINUX, b"\3")
    return True


# --- using up what there is ---------------------------------------------------------------------

MOST_PROCESSES, MOST_BYTES, MOST_FILES = 24, 1 << 20, 200


@probe(HOST)
def fork_bomb(t: Targets) -> bool:
    children: list[int] = []
    try:
        for _ in range(2 * MOST_PROCESSES):
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return True


@probe(HOST)
def fill_the_disk(t: Targets) -> bool:
    file = Path(t.space, "large")
    try:
        file.write_bytes(bytes(3 * MOST_BYTES))
    finally:
        file.unlink()
    return True


@probe(HOST)
def use_up_the_inodes(t: Targets) -> bool:
    directory = Path(t.space, "many")
    directory.mkdir()
    try:
        for i in range(2 * MOST_FILES):
            (directory / str(i)).touch()
    finally:
        for file in directory.iterdir():
            file.unlink()
    return True


# --- the victim ---------------------------------------------------------------------------------

_PR_SET_PTRACER, _PR_SET_PTRACER_ANY = 0x5961_6D61, -1
_IPC_RMID, _IPC_CREAT = 0, 0o1000


def be_the_victim(path: str, name: str) -> None:
    """Have what others attack until standard input ends; say then how often we were signalled."""
    seen: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    with suppress(OSError):  # yama is not everywhere
        syscall("prctl", _PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
    data = ctypes.create_string_buffer(SECRET.encode())
    listener = socket.create_server(("127.0.0.1", 0))
    locals_ = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for local, where in zip(locals_, [f"\0{name}", path], strict=True):
        local.bind(where)
        local.listen()
    shared = Path("/dev/shm", name)  # noqa: S108 - a name that nobody else has
    shared.write_text(SECRET)
    key = os.getpid()
    memory = syscall("shmget", key, mmap.PAGESIZE, _IPC_CREAT | 0o600)
    try:
        address = syscall("shmat", memory, None, 0)
        ctypes.memmove(address, data, len(data))
        syscall("mq_open", name.encode(), os.O_CREAT | os.O_RDWR, 0o600, None)
        facts = {
            "victim": os.getpid(),
            "address": ctypes.addressof(data),
            "port": listener.getsockname()[1],
            "key": key,
        }
        print(json.dumps(facts), flush=True)
        sys.stdin.read()
    finally:
        syscall("shmctl", memory, _IPC_RMID, None)
        syscall("mq_unlink", name.encode())
        shared.unlink()
    print(len(seen))


def have_a_key() -> None:
    """Have a key in a session keyring of our own."""
    syscall("keyctl", _KEYCTL_JOIN, None)
    syscall("add_key", b"user", KEY.encode(), SECRET.encode(), len(SECRET), _SESSION_KEYRING)


# --- as a program -------------------------------------------------------------------------------


def attempt(attack: Attack, targets: Targets) -> str:
    """Make an attack in a process of its own.

    Returns:
        `SUCCEEDED`, `FAILED`, an errno, a signal that it was ended by, or that it is `BROKEN`.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        try:
            said = SUCCEEDED if attack(targets) else FAILED
        except OSError as error:
            said = errno.errorcode.get(error.errno or 0, f"{BROKEN}: {error!r}")
        except BaseException as error:  # noqa: BLE001 - it is told
            said = f"{BROKEN}: {error!r}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    # Children of it may have the pipe's other end still.
    signalled = os.WIFSIGNALED(status)
    said = signal.Signals(os.WTERMSIG(status)).name if signalled else os.read(reader, 999).decode()
    os.close(reader)
    return said


def command(names: list[str], targets: Targets) -> str:
    """The argument with which this makes some of the attacks."""
    return json.dumps({"names": names, "targets": asdict(targets), "numbers": numbers})


def main() -> None:
    order = json.loads(sys.argv[1])
    numbers.update(order["numbers"])
    if "victim" in order:
        be_the_victim(*order["victim"])
        return
    targets = Targets(**order["targets"])
    print(json.dumps({name: attempt(PROBES[name].attack, targets) for name in order["names"]}))


if __name__ == "__main__":
    main()
