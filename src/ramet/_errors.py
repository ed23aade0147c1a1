"""Errors of clone and clone3 in words: the call, its arguments, and advice.

Knows the flags and the errors that the man page lists for them, nothing else.
"""

from __future__ import annotations

import errno
import os

from ramet._flags import NAMESPACES, CloneFlags, spell


def describe_call(call: str, flags: int, **arguments: object) -> str:
    """Render a call like strace does, leaving out what was not given.

    Args:
        call: the system call's name.
        flags: its flags.
        arguments: its other arguments; integers of 64 KiB and more are shown as addresses.

    Returns:
        For example ``"clone3(flags=CLONE_VM, exit_signal=17)"``.
    """
    parts = [f"flags={spell(flags)}"]
    for name, value in arguments.items():
        if value:
            is_address = isinstance(value, int) and value >= 1 << 16
            parts.append(f"{name}={value:#x}" if is_address else f"{name}={value}")
    return f"{call}({', '.join(parts)})"


def call_error(error: int, description: str, advice: str = "") -> OSError:
    """Make the exception for a failed call.

    Args:
        error: the errno, positive.
        description: what `describe_call` gave.
        advice: what to do about it, where that is known.

    Returns:
        The OSError, of the subclass that belongs to the errno.
    """
    text = f"{os.strerror(error)}: {description}"
    return OSError(error, f"{text}; {advice}" if advice else text)


def advise(error: int, flags: int, *, set_tid: bool = False) -> str:
    """Say what an errno of clone means where just one thing can be meant.

    Args:
        error: the errno, positive.
        flags: the flags of the call.
        set_tid: whether thread ids were chosen.

    Returns:
        A clause, or an empty string. Source: clone(2), ERRORS, and kernel/fork.c.
    """
    if set_tid and error in _SET_TID_ADVICE:
        return _SET_TID_ADVICE[error]
    for meant, having, advice in _ADVICE:
        if error == meant and flags & having == having:
            return advice
    if error == errno.EPERM and flags & _PRIVILEGED:
        return f"{spell(flags & _PRIVILEGED)} needs CAP_SYS_ADMIN, or CLONE_NEWUSER beside it"
    if error == errno.ENOSPC and flags & NAMESPACES:
        return "too many namespaces, or nested too deep: see /proc/sys/user/max_*_namespaces"
    if error == errno.EINVAL:
        newer = [flag for flag in CloneFlags if flag & flags and flag > _F.CLEAR_SIGHAND]
        if newer:
            needs = (f"{spell(flag)} needs Linux {flag.since}" for flag in newer)
            return f"{', '.join(needs)}; see ramet.probe()"
    return ""


_F = CloneFlags
_PRIVILEGED = int(NAMESPACES & ~_F.NEWUSER)
_SET_TID_ADVICE = {
    errno.EPERM: "set_tid needs CAP_CHECKPOINT_RESTORE (Linux 5.9) or CAP_SYS_ADMIN",
    errno.EEXIST: "a task with that id exists",
    errno.EINVAL: "set_tid has more ids than there are nested pid namespaces, or one above pid_max,"
    " or a first id of a new pid namespace that is not 1",
}
# errno, the flags that must be there, what it then means. The first that fits is taken.
_ADVICE = (
    (
        errno.EPERM,
        _F.NEWUSER,
        "user namespaces are refused to this process: it is in a chroot, has ids that are not "
        "mapped, or the administrator forbids them to unprivileged users",
    ),
    (errno.EPERM, _F.PIDFD_AUTOKILL, "it needs CAP_SYS_ADMIN, or CLONE_NNP beside it"),
    (
        errno.EAGAIN,
        _F(0),
        "too many tasks: see RLIMIT_NPROC, /proc/sys/kernel/pid_max and the cgroup's pids.max",
    ),
    (
        errno.EBUSY,
        _F.INTO_CGROUP,
        "the cgroup has controllers enabled for its children, so that it may hold no tasks",
    ),
    (
        errno.EACCES,
        _F.INTO_CGROUP,
        "cgroup.procs may not be written to, there or in the common ancestor",
    ),
    (errno.EOPNOTSUPP, _F.INTO_CGROUP, "the cgroup is in the state 'domain invalid'"),
    (errno.EBADF, _F.INTO_CGROUP, "cgroup is not a descriptor of a cgroup v2 directory"),
    (errno.EINVAL, _F.PIDFD | _F.THREAD, "a pidfd of a thread needs Linux 6.9"),
)
