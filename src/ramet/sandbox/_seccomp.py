"""Filters of system calls.

The default allows the calls that this build knows but for those that containers deny: Docker's
default profile for a container without capabilities, less io_uring, most of which goes past
filters, and less the means to get at other processes. What is newer than this build does not exist
(ENOSYS), so programs fall back to what is older.

The kernel compiles a filter at each start, so it is kept short: a call's number is looked for among
ranges of numbers that have the same fate, where libseccomp would compare it with one at a time.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from ramet._flags import CloneFlags
from ramet._syscalls import AUDIT_ARCH, NUMBERS

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
_PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0xFFFF_FFFF)

# linux/seccomp.h and linux/filter.h
_KILL_PROCESS, _ERRNO, _ALLOW = 0x8000_0000, 0x0005_0000, 0x7FFF_0000
_LOAD, _GO_TO, _RETURN = 0x20, 0x05, 0x06
_EQUAL, _AT_LEAST, _HAS_ANY = 0x15, 0x35, 0x45
_NUMBER, _ARCHITECTURE, _ARGUMENTS, _ARGUMENT_SIZE = 0, 4, 16, 8  # in struct seccomp_data
_FARTHEST = 250  # that a jump surely reaches: it has 8 bits


class _Fate(NamedTuple):
    """What is done about a call.

    Attributes:
        action: SECCOMP_RET_*.
        unless: where the argument has one of these: by which comparison, with what, and the action.
        place: which argument. The kernel looks at its lower 32 bits, and so does the filter.
    """

    action: int
    unless: tuple[tuple[int, int, int], ...] = ()
    place: int = 0


_ALLOWED, _DENIED = _Fate(_ALLOW), _Fate(_ERRNO | errno.EPERM)
_UNKNOWN, _KILLED = _Fate(_ERRNO | errno.ENOSYS), _Fate(_KILL_PROCESS)
_BY_ARGUMENT = {
    "clone": _Fate(_ALLOW, ((_HAS_ANY, _NAMESPACES, _DENIED.action),)),
    # What it is asked for lies in memory, where no filter sees it: libraries use clone then.
    "clone3": _UNKNOWN,
    "socket": _Fate(_ALLOW, ((_EQUAL, _AF_VSOCK, _ERRNO | errno.EAFNOSUPPORT),)),
    "ioctl": _Fate(_ALLOW, tuple((_EQUAL, each, _DENIED.action) for each in _INPUT), place=1),
    "personality": _Fate(_UNKNOWN.action, tuple((_EQUAL, each, _ALLOW) for each in _PERSONALITIES)),
}
_X32 = 1 << 30  # the calls of another architecture, on x86-64; no other has such numbers
_NO_CALL = 0xFFFF_FFFF
_NO_SUCH_NAME = -1  # __NR_SCMP_ERROR; other negative numbers are calls of other architectures


def is_available() -> bool:
    """Whether this kernel has filters (CONFIG_SECCOMP_FILTER)."""
    return os.path.exists("/proc/sys/kernel/seccomp/actions_avail")


def libseccomp() -> Any:
    """Import pyseccomp, and libseccomp with it.

    Raises:
        RuntimeError: one of them is not there.
    """
    try:
        import pyseccomp  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: PLC0415
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            "what no call of this architecture is called is looked up by libseccomp, and "
            f"pyseccomp, of ramet[sandbox]: {error}"
        ) from None
    return pyseccomp


def check_names(names: Iterable[str]) -> frozenset[str]:
    """Check names of system calls.

    Raises:
        TypeError: they are one string.
        ValueError: no architecture has one of them, as far as libseccomp knows.
        RuntimeError: one is none of this architecture, and libseccomp or pyseccomp is not there.
    """
    if isinstance(names, str):
        raise TypeError(f"system calls are several names, not one string: {names!r}")
    found = frozenset(names)
    for name in found - NUMBERS.keys() - DENIED:
        scmp = libseccomp()
        if scmp.resolve_syscall(scmp.Arch.NATIVE, name) == _NO_SUCH_NAME:
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
        RuntimeError: as `check_names`.
        TypeError, ValueError: names that are no system calls, or that are in both.

    Source: seccomp(2).
    """
    allowed, denied = check_names(allow), check_names(deny)
    if both := allowed & denied:
        raise ValueError(f"allowed and denied: {', '.join(sorted(both))}")
    return _make(allowed, denied)


@lru_cache(maxsize=32)
def _make(allow: frozenset[str], deny: frozenset[str]) -> bytes:
    fates = dict.fromkeys(DENIED | deny, _DENIED) | dict.fromkeys(allow, _ALLOWED)
    starts = {0: _UNKNOWN}
    for name, number in sorted(NUMBERS.items(), key=itemgetter(1)):
        starts[number] = fates.get(name) or _BY_ARGUMENT.get(name, _ALLOWED)
        starts[number + 1] = _UNKNOWN  # unless there is one
    starts |= {_X32: _KILLED, _NO_CALL: _UNKNOWN}
    # Numbers side by side that have the same fate are one range.
    ranges = [next(group) for _, group in groupby(starts.items(), itemgetter(1))]
    code = _Code()
    code.search(ranges)
    known = code.add(_LOAD, _NUMBER)
    code.compare(_EQUAL, AUDIT_ARCH, known, code.end(_KILLED.action))
    code.add(_LOAD, _ARCHITECTURE)
    return code.pack()


class _Code:
    """A filter, put together from its end, since jumps only go forward.

    A label says how many instructions come after the one that it stands for.
    """

    def __init__(self) -> None:
        self._instructions: list[tuple[int, int, int, int]] = []
        self._ends: dict[int, int] = {}

    def add(self, code: int, value: int, if_true: int = 0, if_false: int = 0) -> int:
        """Put an instruction in front of all others; its label."""
        self._instructions.append((code, if_true, if_false, value))
        return len(self._instructions) - 1

    def end(self, action: int) -> int:
        """Find, or make, an end with an action that is not too far away for a jump."""
        label = self._ends.get(action)
        if label is None or len(self._instructions) - label > _FARTHEST:
            label = self._ends[action] = self.add(_RETURN, action)
        return label

    def compare(self, code: int, value: int, yes: int, no: int) -> int:
        """Go to one label or another."""
        yes, no = self._near(yes), self._near(no)
        here = len(self._instructions)
        return self.add(code, value, here - yes - 1, here - no - 1)

    def _near(self, label: int) -> int:
        """Give a label that is not too far away for a jump."""
        distance = len(self._instructions) - label
        return label if distance <= _FARTHEST else self.add(_GO_TO, distance - 1)

    def decide(self, fate: _Fate) -> int:
        """Decide about a call by its argument."""
        label = self.end(fate.action)
        for code, value, action in reversed(fate.unless):
            label = self.compare(code, value, self.end(action), label)
        if fate.unless:
            label = self.add(_LOAD, _ARGUMENTS + fate.place * _ARGUMENT_SIZE)
        return label

    def search(self, ranges: Sequence[tuple[int, _Fate]]) -> int:
        """Find the range of the number by halves; each begins at a number, the first anywhere."""
        if len(ranges) == 1:
            return self.decide(ranges[0][1])
        middle = len(ranges) // 2
        above = self.search(ranges[middle:])
        below = self.search(ranges[:middle])
        return self.compare(_AT_LEAST, ranges[middle][0], above, below)

    def pack(self) -> bytes:
        """Lay it out: struct sock_filter."""
        return b"".join(struct.pack("=HBBI", *each) for each in reversed(self._instructions))
