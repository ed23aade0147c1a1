"""The usual steps of a program, as methods with the kernel's names and types.

Each adds one system call, or the few that always belong together. Knows what the calls take, not
how a program is compiled or run.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ramet import _names, _native
from ramet._flags import spell as spell_clone_flags
from ramet._names import AT_EMPTY_PATH, AT_FDCWD, flag_names, value_name
from ramet._pointers import c_string

if TYPE_CHECKING:
    from ramet._program import Result

Path = str | bytes | os.PathLike[str]
Env = Mapping[str, Path] | Mapping[bytes, Path]

_UNCHANGED = -1
_CAPABILITY_VERSION_3 = 0x2008_0522
_MOST_CAPABILITIES = 64
_RLIM_INFINITY = (1 << 64) - 1
_SIGNALS_SIZE = 8  # of the kernel's sigset_t
_SIGACTION_SIZE = 32
_TIOCSPGRP = 0x5410
_F_SETFD = 2
_F_DUPFD_CLOEXEC = 1030
_SECCOMP_SET_MODE_FILTER = 1
_LAST_DESCRIPTOR = (1 << 32) - 1
_EPOLL_CTL_ADD = 1
_PACKED = os.uname().machine == "x86_64"  # struct epoll_event (linux/eventpoll.h)


class _Spelling:
    """How to show the arguments of a call that have names."""

    def __init__(self, **tables: Mapping[str, int] | Callable[[int], str]) -> None:
        self._tables = {int(place[1:]): table for place, table in tables.items()}

    def __call__(self, place: int, arg: object) -> str:
        table = self._tables.get(place)
        if table is None or not isinstance(arg, int):
            return ""
        return table(arg) if callable(table) else value_name(arg, table)


def _flags(table: Mapping[str, int]) -> Callable[[int], str]:
    return lambda value: flag_names(value, table)


def _clone_flags(value: int) -> str:
    return spell_clone_flags(value) if value else "0"


def _octal(value: int) -> str:
    return f"{value:#o}" if value else "0"


def _open_flags(value: int) -> str:
    access = {0: "O_RDONLY"}.get(value & 3, "")
    rest = flag_names(value, _names.O) if value & ~3 or not access else ""
    return "|".join(filter(None, (access, rest)))


_at = {"AT_FDCWD": AT_FDCWD}
_OPENAT = _Spelling(_0=_at, _2=_open_flags, _3=_octal)
_AT_PATH = _Spelling(_0=_at)
_MKDIRAT = _Spelling(_0=_at, _2=_octal)
_SYMLINKAT = _Spelling(_1=_at)
_FCNTL = _Spelling(_1=_names.FCNTL)
_CLOSE_RANGE = _Spelling(_2=_flags(_names.CLOSE_RANGE))
_UMASK = _Spelling(_0=_octal)
_PRCTL = _Spelling(_0=_names.PR)
_AMBIENT = _Spelling(_0=_names.PR, _1=_names.PR_CAP_AMBIENT)
_RLIMIT = _Spelling(_1=_names.RESOURCES)
_MOUNT = _Spelling(_3=_flags(_names.MS))
_UMOUNT = _Spelling(_1=_flags(_names.UMOUNT))
_OPEN_TREE = _Spelling(_0=_at, _2=_flags(_names.OPEN_TREE))
_MOVE_MOUNT = _Spelling(_0=_at, _2=_at, _4=_flags(_names.MOVE_MOUNT))
_FSOPEN = _Spelling(_1=_flags(_names.FSOPEN))
_FSCONFIG = _Spelling(_1=_names.FSCONFIG)
_FSMOUNT = _Spelling(_1=_flags(_names.FSMOUNT), _2=_flags(_names.MOUNT_ATTR))
_MOUNT_SETATTR = _Spelling(_0=_at, _2=_flags(_names.AT))
_NAMESPACES = _Spelling(_0=_clone_flags)
_SETNS = _Spelling(_1=_clone_flags)
_SECCOMP = _Spelling(
    _0={"SECCOMP_SET_MODE_FILTER": _SECCOMP_SET_MODE_FILTER}, _1=_flags(_names.SECCOMP_FILTER)
)
_EXECVEAT = _Spelling(_0=_at, _4=_flags(_names.AT))
_TCSETPGRP = _Spelling(_1={"TIOCSPGRP": _TIOCSPGRP})


def capability(name: str | int) -> int:
    """Turn a capability's name (``"CAP_SYS_ADMIN"`` or ``"sys_admin"``) into its number.

    Raises:
        ValueError: there is none of that name or number.
    """
    if isinstance(name, str):
        number = _names.CAPABILITIES.get(name.lower().removeprefix("cap_"), -1)
    else:
        number = name
    if not 0 <= number < _MOST_CAPABILITIES:
        raise ValueError(f"there is no capability {name!r}")
    return number


def capability_mask(capabilities: Iterable[str | int]) -> int:
    """Turn capabilities into a mask with a bit for each."""
    return sum(1 << number for number in {capability(name) for name in capabilities})


class Steps:
    """The methods that `ramet.Program` has for the usual steps.

    They are named as the system call is, and take what that takes; results of earlier steps may
    stand for integers. What they raise is what `Program.syscall` raises, and ValueError for
    names and numbers that the kernel does not have; OverflowError for user and group ids that have
    more than 32 bits. What may fail in the child is told by the man page
    of the same name.
    """

    def _add(
        self,
        name: str | int,
        args: Sequence[object],
        *,
        tolerate: Iterable[int] = (),
        expect: int | None = None,
        or_next: bool = False,
        unblocks: bool = True,
        spell: Callable[[int, object], str] | None = None,
        path: int | None = None,
    ) -> Result:
        raise NotImplementedError

    # --- files and descriptors --------------------------------------------------------------

    def open(
        self,
        path: Path,
        flags: int = os.O_RDONLY,
        mode: int = 0o666,
        *,
        dir_fd: int | Result = AT_FDCWD,
    ) -> Result:
        """Open a file, close-on-exec unless it is moved by `dup2`.

        Args:
            path: the file.
            flags: ``os.O_*``; O_CLOEXEC is added.
            mode: permissions of a file that is created, less the umask.
            dir_fd: the directory that a relative path starts from.

        Returns:
            The descriptor.

        Source: openat(2).
        """
        flags |= os.O_CLOEXEC
        mode = mode if flags & (os.O_CREAT | _O_TMPFILE) else 0
        return self._add("openat", (dir_fd, path, flags, mode), spell=_OPENAT, path=1)

    def write(self, fd: int | Result, data: bytes) -> Result:
        """Write bytes, all in one call: a part only is a failure.

        Source: write(2).
        """
        data = bytes(memoryview(data))
        return self._add("write", (fd, data, len(data)), expect=len(data))

    def close(self, fd: int | Result) -> Result:
        """Close a descriptor.

        Source: close(2).
        """
        return self._add("close", (fd,))

    def write_file(self, path: Path, data: bytes, *, dir_fd: int | Result = AT_FDCWD) -> None:
        """Open a file that exists, such as one of /proc, write to it in one call, and close it."""
        fd = self.open(path, os.O_WRONLY, dir_fd=dir_fd)
        self.write(fd, data)
        self.close(fd)

    def dup2(self, fd: int | Result, fd2: int) -> Result:
        """Make `fd2` a copy of `fd` that survives exec; also where both are the same.

        Source: dup2(2), fcntl(2).
        """
        if fd == fd2:
            return self._add("fcntl", (fd, _F_SETFD, 0), spell=_FCNTL)
        return self._add("dup3", (fd, fd2, 0))

    def dup_above(self, fd: int | Result, lowest: int) -> Result:
        """Copy a descriptor to the lowest free number from `lowest` on, close-on-exec.

        Source: fcntl(2), F_DUPFD_CLOEXEC.
        """
        return self._add("fcntl", (fd, _F_DUPFD_CLOEXEC, lowest), spell=_FCNTL)

    def close_range(self, first: int, last: int = _LAST_DESCRIPTOR, flags: int = 0) -> Result:
        """Close the descriptors from `first` to `last`.

        Source: close_range(2), Linux 5.9.
        """
        return self._add("close_range", (first, last, flags), spell=_CLOSE_RANGE)

    def mkdir(
        self, path: Path, mode: int = 0o777, *, dir_fd: int | Result = AT_FDCWD,
        tolerate: Iterable[int] = (),
    ) -> Result:  # fmt: skip
        """Make a directory; with ``tolerate=[errno.EEXIST]`` it may be there.

        Source: mkdirat(2).
        """
        return self._add("mkdirat", (dir_fd, path, mode), spell=_MKDIRAT, path=1, tolerate=tolerate)

    def symlink(self, target: Path, link_path: Path, *, dir_fd: int | Result = AT_FDCWD) -> Result:
        """Make a symbolic link to `target` at `link_path`.

        Source: symlinkat(2).
        """
        return self._add("symlinkat", (target, dir_fd, link_path), spell=_SYMLINKAT, path=2)

    # --- directories ------------------------------------------------------------------------

    def chdir(self, path: Path) -> Result:
        """Change the working directory.

        Source: chdir(2).
        """
        return self._add("chdir", (path,), path=0)

    def fchdir(self, fd: int | Result) -> Result:
        """Change the working directory to an open one.

        Source: fchdir(2).
        """
        return self._add("fchdir", (fd,))

    def chroot(self, path: Path) -> Result:
        """Change the root directory; the working directory stays.

        Source: chroot(2).
        """
        return self._add("chroot", (path,), path=0)

    def umask(self, mask: int) -> Result:
        """Set the file mode creation mask.

        Source: umask(2).
        """
        return self._add("umask", (mask,), spell=_UMASK)

    # --- sessions and signals ---------------------------------------------------------------

    def setsid(self) -> Result:
        """Become the leader of a new session and process group.

        Source: setsid(2).
        """
        return self._add("setsid", ())

    def setpgid(self, pgid: int | Result = 0) -> Result:
        """Move to a process group; 0 makes a new one.

        Source: setpgid(2).
        """
        return self._add("setpgid", (0, pgid))

    def tcsetpgrp(self, fd: int | Result, pgid: int | Result | None = None) -> None:
        """Make a process group, by default the child's own, the foreground one of a terminal.

        All signals are blocked, so that SIGTTOU does not stop a child from the background.
        Source: tcsetpgrp(3), ioctl_tty(2).
        """
        if pgid is None:
            pgid = self._add("getpgid", (0,))
        where = struct.pack("=i", pgid) if isinstance(pgid, int) else pgid.pointer
        self._add("ioctl", (fd, _TIOCSPGRP, where), spell=_TCSETPGRP)

    def default_signals(self, signals: Iterable[int]) -> None:
        """Give signals their default action; those with a handler have it already.

        Source: sigaction(2).
        """
        for number in signals:
            self._add("rt_sigaction", (number, bytes(_SIGACTION_SIZE), None, _SIGNALS_SIZE))

    def ignore_signals(self, signals: Iterable[int]) -> None:
        """Ignore signals, which exec keeps.

        Source: sigaction(2).
        """
        ignore = struct.pack("=Q", 1) + bytes(_SIGACTION_SIZE - 8)  # SIG_IGN
        for number in signals:
            self._add("rt_sigaction", (number, ignore, None, _SIGNALS_SIZE))

    # --- credentials ------------------------------------------------------------------------

    def setresuid(self, ruid: int, euid: int | None = None, suid: int | None = None) -> Result:
        """Set the real, effective and saved user id, all to the first by default; -1 keeps one.

        Of the child alone: this is the raw call. Source: setresuid(2).
        """
        return self._add("setresuid", _three_ids(ruid, euid, suid))

    def setresgid(self, rgid: int, egid: int | None = None, sgid: int | None = None) -> Result:
        """Set the real, effective and saved group id, as `setresuid`.

        Source: setresgid(2).
        """
        return self._add("setresgid", _three_ids(rgid, egid, sgid))

    def setgroups(self, groups: Sequence[int]) -> Result:
        """Set the supplementary groups.

        Source: setgroups(2).
        """
        for gid in groups:
            if not 0 <= gid < _MOST_IDS:
                raise ValueError(f"there is no group id {gid}")
        packed = struct.pack(f"={len(groups)}I", *groups)
        return self._add("setgroups", (len(groups), packed if groups else None))

    def capset(
        self,
        effective: Iterable[str | int] = (),
        permitted: Iterable[str | int] = (),
        inheritable: Iterable[str | int] = (),
    ) -> Result:
        """Set the capabilities, by names or numbers.

        Source: capset(2), capabilities(7).
        """
        masks = [capability_mask(names) for names in (effective, permitted, inheritable)]
        low = [mask & 0xFFFF_FFFF for mask in masks]
        high = [mask >> 32 for mask in masks]
        header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
        return self._add("capset", (header, struct.pack("=6I", *low, *high)))

    # --- prctl ------------------------------------------------------------------------------

    def prctl(self, option: int, *args: int | Result | bytes) -> Result:
        """Make the call, with up to four arguments.

        Source: prctl(2).
        """
        return self._add("prctl", (option, *args), spell=_PRCTL)

    def set_pdeathsig(self, signal: int, parent_pidfd: int | Result | None = None) -> None:
        """Get a signal when the thread that starts the child ends.

        That is forgotten when ids change, so it goes after `setresuid` and the like.

        Args:
            signal: its number; 0 for none.
            parent_pidfd: a pidfd of this process. With it the program fails if this process had
                gone before the signal was asked for.

        Source: PR_SET_PDEATHSIG(2const).
        """
        self._add("prctl", (_names.PR["PR_SET_PDEATHSIG"], signal), spell=_PRCTL)
        if parent_pidfd is not None:
            # Readable: it has ended, though it may not have been reaped (pidfd_open(2)).
            epoll = self._add("epoll_create1", (os.O_CLOEXEC,))
            event = struct.pack("=IQ" if _PACKED else "=I4xQ", select.EPOLLIN, 0)
            self._add("epoll_ctl", (epoll, _EPOLL_CTL_ADD, parent_pidfd, event))
            room = bytearray(16)
            self._add("epoll_pwait", (epoll, room, 1, 0, None, 8), expect=0)
            self.close(epoll)

    def set_no_new_privs(self) -> Result:
        """Let no exec give privileges from here on.

        Source: PR_SET_NO_NEW_PRIVS(2const).
        """
        return self._add("prctl", (_names.PR["PR_SET_NO_NEW_PRIVS"], 1, 0, 0, 0), spell=_PRCTL)

    def set_keepcaps(self, keep: bool = True) -> Result:
        """Keep the permitted capabilities when ids change.

        Source: PR_SET_KEEPCAPS(2const).
        """
        return self._add("prctl", (_names.PR["PR_SET_KEEPCAPS"], int(keep)), spell=_PRCTL)

    def set_child_subreaper(self, on: bool = True) -> Result:
        """Be the parent of orphaned descendants.

        Source: PR_SET_CHILD_SUBREAPER(2const).
        """
        return self._add("prctl", (_names.PR["PR_SET_CHILD_SUBREAPER"], int(on)), spell=_PRCTL)

    def set_securebits(self, bits: int) -> Result:
        """Set the secure bits.

        Source: PR_SET_SECUREBITS(2const), capabilities(7).
        """
        return self._add("prctl", (_names.PR["PR_SET_SECUREBITS"], bits), spell=_PRCTL)

    def drop_bounding(self, capabilities: Iterable[str | int]) -> None:
        """Drop capabilities from the bounding set.

        Source: PR_CAPBSET_DROP(2const).
        """
        for number in sorted({capability(name) for name in capabilities}):
            self._add("prctl", (_names.PR["PR_CAPBSET_DROP"], number), spell=_PRCTL)

    def raise_ambient(self, capabilities: Iterable[str | int]) -> None:
        """Add capabilities, permitted and inheritable ones, to the ambient set.

        Source: PR_CAP_AMBIENT(2const).
        """
        option, action = _names.PR["PR_CAP_AMBIENT"], _names.PR_CAP_AMBIENT["PR_CAP_AMBIENT_RAISE"]
        for number in sorted({capability(name) for name in capabilities}):
            self._add("prctl", (option, action, number, 0, 0), spell=_AMBIENT)

    def clear_ambient(self) -> Result:
        """Empty the ambient set.

        Source: PR_CAP_AMBIENT(2const).
        """
        action = _names.PR_CAP_AMBIENT["PR_CAP_AMBIENT_CLEAR_ALL"]
        return self._add("prctl", (_names.PR["PR_CAP_AMBIENT"], action, 0, 0, 0), spell=_AMBIENT)

    # --- limits and scheduling --------------------------------------------------------------

    def setrlimit(self, resource: int, soft: int, hard: int | None = None) -> Result:
        """Set a limit.

        Args:
            resource: ``resource.RLIMIT_*``.
            soft: the limit; -1 (``resource.RLIM_INFINITY``) for none.
            hard: how far it may be raised, by default the same.

        Source: setrlimit(2).
        """
        limits = [soft, soft if hard is None else hard]
        if any(not -1 <= limit <= _RLIM_INFINITY for limit in limits):
            raise ValueError(f"a limit must be -1 or at most 64 bits: {limits}")
        packed = struct.pack("=QQ", *(limit % (1 << 64) for limit in limits))
        return self._add("prlimit64", (0, resource, packed, None), spell=_RLIMIT)

    def setpriority(self, nice: int) -> Result:
        """Set the nice value, -20 to 19.

        Source: setpriority(2).
        """
        if not -(1 << 31) <= nice < 1 << 31:
            raise OverflowError(f"a nice value has at most 32 bits: {nice}")
        return self._add("setpriority", (0, 0, nice))

    def sched_setscheduler(self, policy: int, priority: int = 0) -> Result:
        """Set the scheduling policy (``os.SCHED_*``) and priority.

        Source: sched_setscheduler(2).
        """
        return self._add("sched_setscheduler", (0, policy, struct.pack("=i", priority)))

    def sched_setaffinity(self, cpus: Iterable[int]) -> Result:
        """Set the processors that the child may run on.

        Source: sched_setaffinity(2).
        """
        mask = 0
        for cpu in cpus:
            if not 0 <= cpu < 1 << 16:
                raise ValueError(f"there is no processor {cpu}")
            mask |= 1 << cpu
        packed = mask.to_bytes(-(-max(mask.bit_length(), 1) // 64) * 8, "little")
        return self._add("sched_setaffinity", (0, len(packed), packed))

    def ioprio_set(self, ioprio_class: int, level: int = 0) -> Result:
        """Set the class (1 real-time, 2 best-effort, 3 idle) and level of I/O, 0 to 7.

        Source: ioprio_set(2).
        """
        return self._add("ioprio_set", (1, 0, ioprio_class << 13 | level))

    def personality(self, persona: int) -> Result:
        """Set the execution domain.

        Source: personality(2).
        """
        return self._add("personality", (persona,))

    # --- mounts -----------------------------------------------------------------------------

    def mount(
        self,
        source: Path | None,
        target: Path,
        filesystem: str | None = None,
        flags: int = 0,
        data: str | bytes | None = None,
    ) -> Result:
        """Mount something, bind, move, or change a mount, by ``MS_*``.

        Source: mount(2).
        """
        return self._add("mount", (source, target, filesystem, flags, data), spell=_MOUNT, path=1)

    def umount2(self, target: Path, flags: int = 0) -> Result:
        """Unmount.

        Source: umount(2).
        """
        return self._add("umount2", (target, flags), spell=_UMOUNT, path=0)

    def pivot_root(self, new_root: Path, put_old: Path) -> Result:
        """Make a mount the root; ``pivot_root(".", ".")`` stacks them.

        Source: pivot_root(2).
        """
        return self._add("pivot_root", (new_root, put_old), path=0)

    def open_tree(self, path: Path, flags: int = 0, *, dir_fd: int | Result = AT_FDCWD) -> Result:
        """Open a mount, or with OPEN_TREE_CLONE (1) a copy of it; close-on-exec.

        Source: open_tree(2), Linux 5.2.
        """
        args = (dir_fd, path, flags | os.O_CLOEXEC)
        return self._add("open_tree", args, spell=_OPEN_TREE, path=1)

    def move_mount(
        self,
        from_path: Path,
        to_path: Path,
        flags: int = 0,
        *,
        from_fd: int | Result = AT_FDCWD,
        to_fd: int | Result = AT_FDCWD,
    ) -> Result:
        """Move or attach a mount; with an empty path and its flag, that of the descriptor.

        Source: move_mount(2), Linux 5.2.
        """
        args = (from_fd, from_path, to_fd, to_path, flags)
        return self._add("move_mount", args, spell=_MOVE_MOUNT, path=3)

    def fsopen(self, filesystem: str) -> Result:
        """Begin a new file system; close-on-exec.

        Source: fsopen(2), Linux 5.2.
        """
        return self._add("fsopen", (filesystem, 1), spell=_FSOPEN)

    def fsconfig(
        self,
        fd: int | Result,
        command: int,
        key: str | None = None,
        value: str | bytes | None = None,
        aux: int | Result = 0,
    ) -> Result:
        """Configure a file system (``FSCONFIG_*``).

        Source: fsconfig(2), Linux 5.2.
        """
        return self._add("fsconfig", (fd, command, key, value, aux), spell=_FSCONFIG)

    def fsmount(self, fd: int | Result, attributes: int = 0) -> Result:
        """Make a mount of a file system; close-on-exec.

        Source: fsmount(2), Linux 5.2.
        """
        return self._add("fsmount", (fd, 1, attributes), spell=_FSMOUNT)

    def mount_setattr(
        self,
        path: Path,
        flags: int = 0,
        *,
        attr_set: int = 0,
        attr_clr: int = 0,
        propagation: int = 0,
        userns_fd: int = 0,
        dir_fd: int | Result = AT_FDCWD,
    ) -> Result:
        """Change attributes of a mount, with AT_RECURSIVE of all below it.

        Source: mount_setattr(2), Linux 5.12.
        """
        attributes = struct.pack("=4Q", attr_set, attr_clr, propagation, userns_fd)
        args = (dir_fd, path, flags, attributes, len(attributes))
        return self._add("mount_setattr", args, spell=_MOUNT_SETATTR, path=1)

    # --- namespaces -------------------------------------------------------------------------

    def sethostname(self, name: str) -> Result:
        """Set the host name of the UTS namespace.

        Source: sethostname(2).
        """
        return self._add("sethostname", (name, len(os.fsencode(name))))

    def setdomainname(self, name: str) -> Result:
        """Set the NIS domain name of the UTS namespace.

        Source: setdomainname(2).
        """
        return self._add("setdomainname", (name, len(os.fsencode(name))))

    def setns(self, fd: int | Result, nstype: int = 0) -> Result:
        """Join a namespace by its descriptor, or several by a pidfd.

        Source: setns(2).
        """
        return self._add("setns", (fd, nstype), spell=_SETNS)

    def unshare(self, flags: int) -> Result:
        """Leave what is shared, and namespaces (``CloneFlags``).

        Source: unshare(2).
        """
        return self._add("unshare", (flags,), spell=_NAMESPACES)

    # --- confinement ------------------------------------------------------------------------

    def seccomp(self, program: bytes, flags: int = 0) -> Result:
        """Install a filter: a classic BPF program, as an array of struct sock_filter.

        It needs no_new_privs or CAP_SYS_ADMIN, and holds for the steps after it.

        Source: seccomp(2).
        """
        args = (_SECCOMP_SET_MODE_FILTER, flags, Filter(program))
        return self._add("seccomp", args, spell=_SECCOMP)

    def landlock_restrict_self(self, ruleset_fd: int | Result, flags: int = 0) -> Result:
        """Enforce a ruleset, with no_new_privs.

        Source: landlock_restrict_self(2), Linux 5.13.
        """
        return self._add("landlock_restrict_self", (ruleset_fd, flags))

    # --- the end ----------------------------------------------------------------------------

    def execve(self, path: Path, args: Sequence[Path], env: Env | None = None) -> Result:
        """Run a program file.

        Args:
            path: the file.
            args: its arguments, the name it is called by first.
            env: its environment; by default that which this process has now.

        Source: execve(2).
        """
        return self._add("execve", (path, list(args), Environment(env_strings(env))), path=0)

    def execveat(
        self,
        fd: int | Result,
        path: Path,
        args: Sequence[Path],
        env: Env | None = None,
        flags: int = 0,
    ) -> Result:
        """Run a program file by a directory, or with an empty path by its own, descriptor.

        Source: execveat(2).
        """
        flags |= 0 if path else AT_EMPTY_PATH
        args_ = (fd, path, list(args), Environment(env_strings(env)), flags)
        return self._add("execveat", args_, spell=_EXECVEAT, path=1)

    def execvp(
        self,
        paths: Sequence[Path],
        args: Sequence[Path],
        env: Env | None = None,
    ) -> None:
        """Run the first of several program files that exists.

        So does execvp(3) along PATH.

        If there is none, the error is the first that says something other than that a file is
        missing.
        """
        self._add_execs(paths, list(args), env_strings(env))

    def _add_execs(
        self, paths: Sequence[Path], args: list[Path], strings: list[bytes] | None
    ) -> None:
        environment = Environment(strings)
        for i, path in enumerate(paths, 1):
            self._add("execve", (path, args, environment), path=0, or_next=i < len(paths))

    def exit(self, status: int | Result = 0) -> Result:
        """End the child.

        Source: _exit(2).
        """
        return self._add("exit_group", (status,))


_O_TMPFILE = getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY
_MOST_IDS = (1 << 32) - 1


def check_id(value: int) -> int:
    """Check a user or group id.

    Raises:
        ValueError: it is negative.
        OverflowError: it has more than 32 bits.
    """
    if value < 0:
        raise ValueError(f"there is no id {value}")
    if value >= _MOST_IDS:
        raise OverflowError(f"an id has at most 32 bits: {value}")
    return value


def _three_ids(first: int, second: int | None, third: int | None) -> tuple[int, int, int]:
    ids = (first, first if second is None else second, first if third is None else third)
    for value in ids:
        if value != _UNCHANGED:
            check_id(value)
    return ids


class Environment:
    """The environment of a program file, as it is now. Its values are shown nowhere.

    Args:
        strings: as of `env_strings`; None for that of this process, as the C library has it.
    """

    __slots__ = ("block",)

    def __init__(self, strings: list[bytes] | None) -> None:
        # A copy: other threads may change the original while the child execs.
        self.block = _native.strings(strings)

    def pin(self, pin: Callable[[bytes], int]) -> int:
        """Give the address, for which `pin` keeps bytes and gives theirs."""
        return pin(self.block)

    def __repr__(self) -> str:
        return "/* environment */"


class Filter:
    """A filter of system calls: struct sock_fprog, and the instructions that it points to.

    Args:
        code: the instructions.

    Raises:
        ValueError: they are none, or not whole.
    """

    __slots__ = ("code",)
    ADDRESS = 8  # where the header has that of the instructions
    _INSTRUCTION = 8  # sizeof(struct sock_filter)

    def __init__(self, code: bytes) -> None:
        if not code or len(code) % self._INSTRUCTION:
            raise ValueError(
                f"a filter has {self._INSTRUCTION} bytes for each instruction: {len(code)}"
            )
        self.code = bytes(code)

    def pin(self, pin: Callable[[bytes], int]) -> int:
        """Give the address, as of `Environment.pin`."""
        return pin(self.pointing_to(pin(self.code)))

    def pointing_to(self, address: int) -> bytes:
        """Make the structure for instructions at an address."""
        return struct.pack("=H6xQ", len(self.code) // self._INSTRUCTION, address)

    def __repr__(self) -> str:
        return f"<{len(self.code) // self._INSTRUCTION} instructions>"


def env_strings(env: Env | None) -> list[bytes] | None:
    """Make the strings of an environment; None, for that of this process, is left.

    Raises:
        ValueError: a name has a "=" in it, or there is a NUL.
        TypeError: a name or value is no string.
    """
    if env is None:
        return None
    strings = []
    for name, value in env.items():
        encoded = c_string(name)
        if b"=" in encoded:
            raise ValueError("illegal environment variable name")
        strings.append(encoded + b"=" + c_string(value))
    return strings
