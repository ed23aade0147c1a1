"""Errors of clone and clone3 in words: the call, its arguments, and advice.

Knows the flags and the errors that the man page lists for them, nothing else.
"""

from __future__ import annotations

import errno
import os

from ramet._flags import NAMESPACES, CloneFlags, spell


def describe_call(call: str, flags: int, **arguments: object) -> str:
    """Render a call like strace does, leaving out what was not given.

    Parameters:
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

    Parameters:
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

    Parameters:
        error: the errno, positive.
        flags: the flags of the call.
        set_tid: whether thread ids were chosen.

    Returns:
        A clause, or an empty string. Source: clone(2), ERRORS, and kernel/fork.c.
    """
    namespaces = CloneFlags(flags & NAMESPACES)
    privileged = namespaces & ~CloneFlags.NEWUSER
    advice = ""
    if error == errno.EPERM and flags & CloneFlags.NEWUSER:
        advice = (
            "user namespaces are refused to this process: it may be in a chroot, have ids that "
            "are not mapped, or the administrator forbids them to unprivileged users"
        )
    elif error == errno.EPERM and set_tid:
        advice = "set_tid needs CAP_CHECKPOINT_RESTORE (Linux 5.9) or CAP_SYS_ADMIN"
    elif error == errno.EPERM and privileged:
        advice = f"{spell(privileged)} needs CAP_SYS_ADMIN, or CLONE_NEWUSER in the same call"
    elif error == errno.EPERM and flags & CloneFlags.PIDFD_AUTOKILL:
        advice = "CLONE_PIDFD_AUTOKILL needs CAP_SYS_ADMIN, or CLONE_NNP in the same call"
    elif error == errno.ENOSPC and namespaces:
        advice = "too many namespaces, or nested too deep: see /proc/sys/user/max_*_namespaces"
    elif error == errno.EAGAIN:
        advice = "too many tasks: see RLIMIT_NPROC, /proc/sys/kernel/pid_max and pids.max"
    elif error == errno.EEXIST and set_tid:
        advice = "a task with that id exists"
    elif error == errno.EBUSY and flags & CloneFlags.INTO_CGROUP:
        advice = "the cgroup has controllers enabled for its children, so it may hold no tasks"
    elif error == errno.EACCES and flags & CloneFlags.INTO_CGROUP:
        advice = "writing to cgroup.procs is not allowed, there or in a common ancestor"
    elif error == errno.EOPNOTSUPP and flags & CloneFlags.INTO_CGROUP:
        advice = "the cgroup is in the state 'domain invalid'"
    elif error == errno.EBADF and flags & CloneFlags.INTO_CGROUP:
        advice = "cgroup is not a descriptor of a cgroup v2 directory"
    elif error == errno.EINVAL and flags & CloneFlags.PIDFD and flags & CloneFlags.THREAD:
        advice = "a pidfd of a thread needs Linux 6.9"
    elif error == errno.EINVAL and flags & _NEWER:
        advice = _too_new(flags)
    return advice


_NEWER = sum(flag for flag in CloneFlags if flag >= CloneFlags.CLEAR_SIGHAND)


def _too_new(flags: int) -> str:
    wanted = [flag for flag in CloneFlags if flag & flags & _NEWER]
    since = {f"{spell(flag)} needs Linux {flag.since}" for flag in wanted}
    return f"{', '.join(sorted(since))}; see ramet.probe()"
