"""clone(2) and clone3(2) one to one: integers and addresses, nothing managed.

What the kernel is given is what you give, with one thing added: the child calls ``fn(arg)`` on the
stack and ends with the raw exit system call, with what `fn` returns as its status. Signals are
not blocked, memory is not kept, combinations are not checked, the child is not waited for, and a
wrong address ends the interpreter. `ramet.clone` does all of that.

With ``CLONE_VM`` the GIL is released for the time of the call, without it is held.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

from ramet import _native
from ramet._errors import advise, call_error, describe_call
from ramet._flags import CSIGNAL

__all__ = ["CLONE_ARGS_SIZE_VER0", "CLONE_ARGS_SIZE_VER1", "CLONE_ARGS_SIZE_VER2"]
__all__ += ["clone", "clone3"]

# Sizes of struct clone_args as published (linux/sched.h): Linux 5.3, 5.5 (set_tid), 5.7 (cgroup).
CLONE_ARGS_SIZE_VER0 = 64
CLONE_ARGS_SIZE_VER1 = 80
CLONE_ARGS_SIZE_VER2 = 88


def clone(
    fn: int, arg: int, flags: int, child_stack: int, ptid: int = 0, newtls: int = 0, ctid: int = 0
) -> int:
    """Make the system call clone.

    Args:
        fn: address of a C function ``long fn(void *)``.
        arg: its argument.
        flags: ``CLONE_*`` flags, with the exit signal in the low 8 bits.
        child_stack: one past the highest byte of the child's stack.
        ptid: address where PARENT_SETTID and PIDFD store (an int).
        newtls: the child's thread pointer, with SETTLS.
        ctid: address where CHILD_SETTID and CHILD_CLEARTID store (an int).

    Returns:
        The child's thread id, as the caller's pid namespace has it.

    Raises:
        OSError: the kernel's errno, with the call in words; EINVAL without a system call if `fn`
            or `child_stack` is 0.
        TypeError: an argument is no int.
        OverflowError: an argument is negative or longer than 64 bits.

    Source: clone(2).
    """
    sys.audit("ramet.clone", fn, flags)
    result = _native.clone(fn, arg, flags, child_stack, ptid, newtls, ctid)
    if result < 0:
        call = describe_call(
            "clone",
            flags & ~CSIGNAL,
            exit_signal=flags & CSIGNAL,
            child_stack=child_stack,
            ptid=ptid,
            newtls=newtls,
            ctid=ctid,
        )
        raise call_error(-result, call, advise(-result, flags & ~CSIGNAL))
    return result


def clone3(
    fn: int,
    arg: int,
    *,
    flags: int = 0,
    pidfd: int = 0,
    child_tid: int = 0,
    parent_tid: int = 0,
    exit_signal: int = 0,
    stack: int = 0,
    stack_size: int = 0,
    tls: int = 0,
    set_tid: Sequence[int] = (),
    cgroup: int | None = None,
) -> int:
    """Make the system call clone3, with the smallest struct that has the fields used.

    Args:
        fn: address of a C function ``long fn(void *)``.
        arg: its argument.
        flags: ``CLONE_*`` flags.
        pidfd: address where PIDFD stores (an int).
        child_tid: address where CHILD_SETTID and CHILD_CLEARTID store (an int).
        parent_tid: address where PARENT_SETTID stores (an int).
        exit_signal: the signal that the parent gets when the child ends, or 0.
        stack: address of the lowest byte of the child's stack.
        stack_size: its length in bytes, at least 32.
        tls: the child's thread pointer, with SETTLS.
        set_tid: ids for the child, the one in the innermost pid namespace first.
        cgroup: a descriptor of a cgroup v2 directory, with INTO_CGROUP.

    Returns:
        The child's thread id, as the caller's pid namespace has it.

    Raises:
        OSError: the kernel's errno, with the call in words; EINVAL without a system call if `fn`
            or `stack` is 0 or `stack_size` too small.
        TypeError: an argument, or an id in `set_tid`, is no int.
        OverflowError: an argument is negative or longer than 64 bits, or an id in `set_tid` does
            not fit into a pid_t.

    Source: clone(2), clone3.
    """
    sys.audit("ramet.clone", fn, flags)
    size = CLONE_ARGS_SIZE_VER0
    ids = array("i", set_tid)
    if ids:
        size = CLONE_ARGS_SIZE_VER1
    if cgroup is not None:
        size = CLONE_ARGS_SIZE_VER2
    result = _native.clone3(
        fn,
        arg,
        size,
        flags,
        pidfd,
        child_tid,
        parent_tid,
        exit_signal,
        stack,
        stack_size,
        tls,
        _native.address(ids) if ids else 0,
        len(ids),
        cgroup or 0,
    )
    if result < 0:
        call = describe_call(
            "clone3",
            flags,
            pidfd=pidfd,
            child_tid=child_tid,
            parent_tid=parent_tid,
            exit_signal=exit_signal,
            stack=stack,
            stack_size=stack_size,
            tls=tls,
            set_tid=list(ids),
            cgroup=cgroup,
        )
        raise call_error(-result, call, advise(-result, flags, set_tid=bool(ids)))
    return result
