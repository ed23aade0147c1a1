"""Filters of system calls, made by libseccomp.

The default allows the calls that this build knows but for those that containers deny: Docker's
default profile for a container without capabilities, less io_uring, most of which goes past
filters, less the means to get at other processes, and less leases of files. What is newer than this
build does not exist (ENOSYS), so programs fall back to what is older.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from ramet._flags import CloneFlags
from ramet._syscalls import NUMBERS

DENIED = frozenset(
    (
        # Mounts, namespaces, the root directory.
        *("mount", "umount", "umount2", "pivot_root", "chroot", "setns", "unshare", "fsopen"),
        *("fsconfig", "fsmount", "fspick", "move_mount", "open_tree", "open_tree_attr"),
        *("mount_setattr", "sethostname", "setdomainname", "open_by_handle_at"),
        # Other processes.
        *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd"),
        *("kcmp", "userfaultfd"),
        # The kernel: code in it, its clock, log, keys, hardware, accounting.
        *("bpf", "perf_event_open", "init_module", "finit_module", "delete_module", "kexec_load"),
        *("kexec_file_load", "reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd"),
        *("syslog", "settimeofday", "clock_settime", "add_key", "request_key", "keyctl", "iopl"),
        *("ioperm", "vhangup", "lookup_dcookie", "fanotify_init", "nfsservctl", "uselib", "ustat"),
        *("sysfs", "_sysctl", "create_module", "get_kernel_syms", "query_module"),
        *("get_mempolicy", "set_mempolicy", "set_mempolicy_home_node", "mbind", "migrate_pages"),
        *("move_pages", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    )
)
"""Calls that fail with EPERM."""

_NAMESPACES = int(
    CloneFlags.NEWNS
    | CloneFlags.NEWUTS
    | CloneFlags.NEWIPC
    | CloneFlags.NEWUSER
    | CloneFlags.NEWPID
    | CloneFlags.NEWNET
    | CloneFlags.NEWCGROUP
)
_AF_VSOCK = 40  # talks to the host of a virtual machine
_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: put text into a terminal, for others to read
# Whoever writes to a file that somebody has a lease of waits, 45 seconds by default; and one can be
# had of any file of the same user that may be read. F_SETLEASE, F_SETDELEG.
_LEASES = (1024, 1024 + 16)
_PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0xFFFF_FFFF)
# The argument that counts, what it may not be (masks, and what is left of it by them; the kernel
# looks at 32 bits), and with which errno the call fails. No argument: it fails in any case.
_LOW = 0xFFFF_FFFF
_BY_ARGUMENT: dict[str, tuple[int, list[tuple[int, int]], int]] = {
    "clone": (0, [(1 << i, 1 << i) for i in range(32) if _NAMESPACES & 1 << i], errno.EPERM),
    # What it is asked for lies in memory, where no filter sees it: libraries use clone then.
    "clone3": (0, [], errno.ENOSYS),
    "socket": (0, [(_LOW, _AF_VSOCK)], errno.EAFNOSUPPORT),
    "ioctl": (1, [(_LOW, each) for each in _INPUT], errno.EPERM),
    "fcntl": (1, [(_LOW, each) for each in _LEASES], errno.EPERM),
}
# seccomp.h
_LIBRARY = "libseccomp.so.2"
_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO
_UNKNOWN = -1  # __NR_SCMP_ERROR; other negative numbers are calls of other architectures
_OPTIMIZE, _BY_TREE = 8, 2  # SCMP_FLTATR_CTL_OPTIMIZE
_CONDITION = struct.Struct("=2I2Q")  # struct scmp_arg_cmp
_MASKED_EQ = 7  # SCMP_CMP_MASKED_EQ


@lru_cache(maxsize=1)
def libseccomp() -> Any:
    """Load libseccomp.

    Raises:
        RuntimeError: it is not there.
    """
    # Not earlier: it takes as long as much of what is imported here.
    from ctypes import CDLL, c_char_p, c_int, c_uint, c_uint32, c_void_p  # noqa: PLC0415

    try:
        library = CDLL(_LIBRARY)
    except OSError as error:
        raise RuntimeError(f"filters of system calls need libseccomp: {error}") from None
    library.seccomp_init.argtypes = (c_uint32,)
    library.seccomp_init.restype = c_void_p
    library.seccomp_release.argtypes = (c_void_p,)
    library.seccomp_release.restype = None
    library.seccomp_attr_set.argtypes = (c_void_p, c_int, c_uint32)
    library.seccomp_rule_add_array.argtypes = (c_void_p, c_uint32, c_int, c_uint, c_char_p)
    library.seccomp_export_bpf.argtypes = (c_void_p, c_int)
    library.seccomp_syscall_resolve_name.argtypes = (c_char_p,)
    return library


def check_names(names: Iterable[str]) -> frozenset[str]:
    """Check names of system calls.

    Raises:
        TypeError: they are one string.
        ValueError: no architecture has one of them, as far as libseccomp knows.
    """
    if isinstance(names, str):
        raise TypeError(f"system calls are several names, not one string: {names!r}")
    found = frozenset(names)
    resolve = libseccomp().seccomp_syscall_resolve_name
    for name in found - NUMBERS.keys() - DENIED:
        if resolve(os.fsencode(name)) == _UNKNOWN:
            raise ValueError(f"there is no system call {name!r}")
    return found


def filter_program(*, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> bytes:
    """Make the filter.

    Args:
        allow: calls that are allowed although the default denies them, whatever their arguments.
        deny: calls that fail with EPERM although the default allows them.

    Returns:
        A classic BPF program for `Program.seccomp`. Calls of another architecture end the process.

    Raises:
        RuntimeError: libseccomp is not there.
        TypeError, ValueError: names that are no system calls, or that are in both.

    Source: seccomp(2), seccomp_rule_add(3), seccomp_export_bpf(3).
    """
    allowed, denied = check_names(allow), check_names(deny)
    if both := allowed & denied:
        raise ValueError(f"allowed and denied: {', '.join(sorted(both))}")
    return _make(allowed, denied)


@lru_cache(maxsize=32)
def _make(allow: frozenset[str], deny: frozenset[str]) -> bytes:
    made = _Filter(_ALLOW)
    for name, number in NUMBERS.items():
        if name in allow:
            continue
        if name in DENIED | deny:
            made.add(_ERRNO | errno.EPERM, number)
        elif name in _BY_ARGUMENT:
            place, refused, error = _BY_ARGUMENT[name]
            conditions = [_CONDITION.pack(place, _MASKED_EQ, *each) for each in refused]
            for condition in conditions or [b""]:
                made.add(_ERRNO | error, number, condition)
    return _beginning(personality="personality" not in allow | deny) + made.export()


# linux/filter.h, and where it is in struct seccomp_data (little-endian).
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _FIRST_ARGUMENT = 0, 16


def _beginning(*, personality: bool) -> bytes:
    """Make the instructions before libseccomp's, for what that cannot say.

    These are: that a number is above some other, and that an argument is none of several. What is
    not refused here goes on behind them.
    """
    values = _PERSONALITIES if personality else ()
    # Code, how many are skipped if it holds and if not, value. The last one refuses.
    code = [(_LOAD, 0, 0, _NUMBER), (_IF_AT_LEAST, 2 + len(values), 0, max(NUMBERS.values()) + 1)]
    code += [
        (_IF_EQUAL, 0, 2 + len(values), NUMBERS["personality"] if values else _LOW),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *((_IF_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    return b"".join(struct.pack("=HBBI", *each) for each in code)


class _Filter:
    """A filter of libseccomp."""

    def __init__(self, default: int) -> None:
        self._library = libseccomp()
        self._context = self._library.seccomp_init(default)
        _check(0 if self._context else -errno.ENOMEM)
        _check(self._library.seccomp_attr_set(self._context, _OPTIMIZE, _BY_TREE))

    def add(self, action: int, number: int, condition: bytes = b"") -> None:
        add = self._library.seccomp_rule_add_array
        _check(add(self._context, action, number, bool(condition), condition or None))

    def export(self) -> bytes:
        fd = os.memfd_create("filter")
        with open(fd, "rb") as file:
            _check(self._library.seccomp_export_bpf(self._context, fd))
            file.seek(0)
            return file.read()

    def __del__(self) -> None:
        if context := getattr(self, "_context", None):
            self._library.seccomp_release(context)


def _check(result: int) -> None:
    """Raise what libseccomp returns."""
    if result < 0:
        raise OSError(-result, f"libseccomp: {os.strerror(-result)}")
