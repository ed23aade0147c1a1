"""clone(): one managed start of a C function in a new process or thread.

Puts together flags, pointers and stacks, and hands out Child and Thread.
"""

from __future__ import annotations

import errno
import operator
import os
import struct
import sys
from collections.abc import Sequence
from signal import SIGCHLD
from typing import NamedTuple, Protocol

from ramet._child import Child
from ramet._errors import advise, call_error, describe_call
from ramet._flags import CLONE3_ONLY, NAMESPACES, CloneFlags, check_flags, spell
from ramet._native import Stack
from ramet._orphans import sweep, waiting
from ramet._pointers import PythonCallableError, function_address, pointer
from ramet._stacks import DEFAULT_STACK_SIZE, idle
from ramet._threads import Thread

_F = CloneFlags
_WORD = 1 << 64
_HIGHEST_SIGNAL = 64
_MAX_DESCRIPTOR = 1 << 31
_MAX_PID_NAMESPACES = 32  # MAX_PID_NS_LEVEL, include/linux/pid_namespace.h


class HasFileno(Protocol):
    """Anything with a descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...


def clone(
    fn: object,
    arg: object = None,
    flags: int = 0,
    *,
    exit_signal: int | None = None,
    stack_size: int = DEFAULT_STACK_SIZE,
    ptid: object = None,
    tls: object = None,
    ctid: object = None,
    set_tid: Sequence[int] = (),
    cgroup: int | str | os.PathLike[str] | HasFileno | None = None,
) -> Child | Thread:
    """Start a C function in a new process or thread.

    The child calls ``fn(arg)`` on a stack of its own, which has a guard page, and exits with what
    `fn` returns. What it shares with the caller is up to `flags`. clone3(2) is used, and where
    that does not exist or is filtered, clone(2), provided that it can do what is asked for.

    Beside what you ask for, the kernel is asked for ``PIDFD`` (unless for a thread), for
    ``CLEAR_SIGHAND`` unless the handlers are shared (Python's handlers must not run in a child),
    and, to learn when a task that shares memory has let go of it, for ``CHILD_CLEARTID``.

    All signals are blocked during the start. `fn` then runs with the caller's signal mask, but
    with all signals blocked if it shares the handlers (``SIGHAND``, ``THREAD``).

    With ``VM`` the GIL is released during the call, and `fn` must keep off the C library unless
    it has a thread pointer of its own (`tls`): it shares ``errno`` and all else that is
    thread-local with the calling thread. Without ``VM`` the GIL is held.

    Args:
        fn: a C function ``long fn(void *)``: an address, a ctypes or cffi function pointer, or
            anything with an ``address`` (a numba cfunc).
        arg: its argument: None (NULL), an int, a ctypes object (its address) or ctypes pointer
            (where it points), a cffi pointer, or a writable buffer (its address). It is kept
            alive until the child is gone.
        flags: `CloneFlags`.
        exit_signal: the signal that the caller gets when the child ends, 0 for none. By default
            SIGCHLD, and none where the kernel wants none (THREAD, PARENT, AUTOREAP).
        stack_size: bytes, rounded up to whole pages.
        ptid: where the thread id is stored before the call returns (an int, 4 bytes), as a
            pointer like `arg`. Sets ``PARENT_SETTID``. (clone3 stores it before the child runs;
            where clone has to do, it is stored after the call.)
        tls: the child's thread pointer, as a pointer like `arg`. Sets ``SETTLS``.
        ctid: where ``CHILD_SETTID`` and ``CHILD_CLEARTID`` store (an int, 4 bytes), as a pointer
            like `arg`; give one of the two flags, or both, with it. With CHILD_CLEARTID and VM
            it is set to 1 beforehand, so that 0 means that the child is gone.
        set_tid: ids for the child, the one in the innermost pid namespace first (Linux 5.5).
        cgroup: the cgroup v2 directory to start in: a path, a descriptor, or an object with a
            fileno (Linux 5.7). Sets ``INTO_CGROUP``.

    Returns:
        A `Child`, or with ``THREAD`` a `Thread`.

    Raises:
        ValueError: flags, exit signal or parameters that do not go together (the message says by
            which rule), or a number that is out of range.
        TypeError: an argument of a wrong kind; a Python function as `fn`.
        OSError: the kernel refuses; the message has the call in words.

    Source: clone(2), clone3.
    """
    if waiting:
        sweep()
    address = fn if type(fn) is int and 0 < fn < _WORD else _c_function(fn, flags)
    arg_address, arg_owner = (0, None) if arg is None else pointer(arg, "arg")
    if type(flags) is not int:  # the hash of an IntFlag is a call of Python
        flags = _integer(flags, "flags")
    if ptid is None and tls is None and ctid is None and exit_signal is None and cgroup is None:
        plan = _simple_plans.get(flags) or _simple_plan(flags)
        ptid_address = tls_address = ctid_address = 0
        owners: tuple[object, ...] = ()
    else:
        plan = _plan(
            flags,
            exit_signal,
            ptid is not None,
            tls is not None,
            ctid is not None,
            cgroup is not None,
        )
        ptid_address, ptid_owner = pointer(ptid, "ptid")
        tls_address, tls_owner = pointer(tls, "tls")
        ctid_address, ctid_owner = pointer(ctid, "ctid")
        owners = (ptid_owner, tls_owner, ctid_owner)
        if (ptid is not None and not ptid_address) or (ctid is not None and not ctid_address):
            raise ValueError("ptid and ctid must not be NULL")
    wanted, signal, handle, lasting = plan
    ids = _pack_ids(set_tid) if set_tid else b""
    sys.audit("ramet.clone", address, wanted)

    try:
        stack = idle.pop() if stack_size == DEFAULT_STACK_SIZE else _new_stack(stack_size)
    except IndexError:
        stack = Stack(DEFAULT_STACK_SIZE)
    # The handle is there before the task, so that each has an owner at any moment: after any call
    # here the handler of a signal may run, and raise, and the handle is dropped.
    task = handle()
    if lasting:
        task._keep = (fn, arg_owner, owners)
    descriptor, opened = (-1, False) if cgroup is None else _cgroup_descriptor(cgroup)
    try:
        result = -errno.ENOSYS
        if not _clone3.missing:
            result = task.start(
                stack,
                address,
                arg_address,
                wanted,
                signal,
                ptid_address,
                tls_address,
                ctid_address,
                descriptor,
                ids,
                False,
            )
        if result < 0:
            call = (address, arg_address, wanted, signal, ptid_address, tls_address, ctid_address)
            _fall_back(task, stack, call, descriptor, ids, -result)
    finally:
        if opened:
            os.close(descriptor)
    if not lasting and stack_size == DEFAULT_STACK_SIZE:
        idle.append(stack)
    return task


class _Plan(NamedTuple):
    """What the kernel is asked for, for a combination of flags and parameters."""

    flags: int
    exit_signal: int
    handle: type[Child | Thread]
    lasting: bool  # the stack is needed after the call has returned


def _plan(
    flags: int,
    exit_signal: int | None,
    has_ptid: bool,
    has_tls: bool,
    has_ctid: bool,
    has_cgroup: bool,
) -> _Plan:
    """Check a combination and add what is implied."""
    if flags < 0:
        raise ValueError(f"flags must not be negative: {flags:#x}")
    ctid_flags = _F.CHILD_SETTID | _F.CHILD_CLEARTID
    for flag, has, name in (
        (_F.PARENT_SETTID, has_ptid, "ptid"),
        (_F.SETTLS, has_tls, "tls"),
        (_F.INTO_CGROUP, has_cgroup, "cgroup"),
        (ctid_flags, has_ctid, "ctid"),
    ):
        if flags & flag and not has:
            raise ValueError(f"{spell(flags & flag)} needs {name}")
    if has_ctid and not flags & ctid_flags:
        raise ValueError("ctid needs CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID or both")
    flags |= has_ptid * _F.PARENT_SETTID | has_tls * _F.SETTLS | has_cgroup * _F.INTO_CGROUP

    thread = bool(flags & _F.THREAD)
    if exit_signal is None:
        exit_signal = 0 if flags & (_F.THREAD | _F.PARENT | _F.AUTOREAP) else SIGCHLD
    exit_signal = _integer(exit_signal, "exit_signal")
    if not 0 <= exit_signal <= _HIGHEST_SIGNAL:
        raise ValueError(f"exit_signal must be 0 to {_HIGHEST_SIGNAL}, not {exit_signal}")
    if not thread:
        flags |= _F.PIDFD
    elif has_ctid:
        flags |= _F.CHILD_CLEARTID
    check_flags(flags, exit_signal, "clone3")
    if not flags & _F.SIGHAND:
        flags |= _F.CLEAR_SIGHAND
    return _Plan(
        int(flags),
        exit_signal,
        handle=Thread if thread else Child,
        lasting=thread or flags & (_F.VM | _F.VFORK) == _F.VM,
    )


# Plans of flags alone, for all else is left to its default most of the time.
_simple_plans: dict[int, _Plan] = {}
_MOST_PLANS = 256


def _simple_plan(flags: int) -> _Plan:
    plan = _plan(flags, None, False, False, False, False)
    if len(_simple_plans) < _MOST_PLANS:
        _simple_plans[flags] = plan
    return plan


# fn, arg, flags, exit_signal, ptid, tls, ctid: what Task.start takes after the stack.
_Call = tuple[int, int, int, int, int, int, int]


def _fall_back(
    task: Child | Thread, stack: Stack, call: _Call, cgroup: int, ids: bytes, error: int
) -> None:
    """Make the call with clone(2), if what clone3 answered means that it is not to be had.

    Raises:
        OSError: it means something else, or clone cannot do what is asked for, or refuses it.
    """
    fn, arg, flags, exit_signal, ptid, tls, ctid = call
    if not _is_missing(error, flags, ids):
        raise _error("clone3", error, stack, call, cgroup, ids)
    lost = _lost_by_clone(flags, ids)
    if lost:
        advice = f"clone3 is not to be had here, and clone has no {lost}"
        raise _error("clone3", errno.ENOSYS, stack, call, cgroup, ids, advice)
    flags &= ~_CLEAR_SIGHAND  # our part of the child does it
    result = task.start(stack, fn, arg, flags, exit_signal, ptid, tls, ctid, -1, b"", True)
    if result < 0:
        raise _error("clone", -result, stack, call, cgroup, ids)
    _clone3.missing = True


def _is_missing(error: int, flags: int, ids: bytes) -> bool:
    """Whether an errno of clone3 can mean that the call itself is what is refused."""
    if error == errno.EPERM:  # by the seccomp filter of an old container
        return not (ids or flags & _PRIVILEGED)
    return error == errno.ENOSYS


def _lost_by_clone(flags: int, ids: bytes) -> str:
    """Name what clone(2) cannot do of what is asked for, if anything."""
    lost = [spell(flags & _CLONE3_FEATURES)] if flags & _CLONE3_FEATURES else []
    if ids:
        lost.append("set_tid")
    return ", ".join(lost)


def _error(
    name: str, error: int, stack: Stack, call: _Call, cgroup: int, ids: bytes, advice: str = ""
) -> OSError:
    """Make the exception for a failed start."""
    _, _, flags, exit_signal, ptid, tls, ctid = call
    description = describe_call(
        name,
        flags,
        exit_signal=exit_signal,
        stack_size=stack.size,
        parent_tid=ptid,
        tls=tls,
        child_tid=ctid,
        set_tid=list(struct.unpack(f"={len(ids) // 4}i", ids)),
        cgroup=cgroup if cgroup >= 0 else None,
    )
    return call_error(error, description, advice or advise(error, flags, set_tid=bool(ids)))


class _Clone3:
    """What this process has learnt of clone3: it is missing, or a filter refuses it."""

    missing = False


_clone3 = _Clone3()

# Plain ints: the operators of IntFlag take a microsecond each.
_CLEAR_SIGHAND = int(_F.CLEAR_SIGHAND)
_CLONE3_FEATURES = int(CLONE3_ONLY & ~_F.CLEAR_SIGHAND)
# What EPERM may be about, other than a filter that does not know clone3.
_PRIVILEGED = int(NAMESPACES | _F.INTO_CGROUP | _F.PIDFD_AUTOKILL)


def _c_function(fn: object, flags: int) -> int:
    try:
        return function_address(fn)
    except PythonCallableError as error:
        if flags & _F.VM:
            reason = (
                "with CLONE_VM the child would run Python in this process's memory, on this "
                "thread's state and without the GIL, and corrupt both"
            )
        else:
            reason = (
                "a copy of this process has to pass Python's fork hooks before it may run Python"
            )
        raise TypeError(f"fn must be a C function: {error}, and {reason}") from None


def _integer(value: object, name: str) -> int:
    """Make a plain int of what is one, and refuse what is not."""
    try:
        return int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}") from None


def _new_stack(stack_size: int) -> Stack:
    size = _integer(stack_size, "stack_size")
    if not 0 <= size <= sys.maxsize:
        raise ValueError(f"a stack of {size} bytes is not to be had: stack_size")
    return Stack(size)


def _pack_ids(set_tid: Sequence[int]) -> bytes:
    if isinstance(set_tid, str | bytes) or not isinstance(set_tid, Sequence):
        raise TypeError(f"set_tid must be a sequence of ints, not {type(set_tid).__name__}")
    if len(set_tid) > _MAX_PID_NAMESPACES:
        raise ValueError(
            f"set_tid has {len(set_tid)} ids, and pid namespaces nest {_MAX_PID_NAMESPACES} deep"
        )
    ids = [_integer(tid, "an id in set_tid") for tid in set_tid]
    for tid in ids:
        if not 0 < tid < 1 << 31:
            raise ValueError(f"set_tid must have positive ids, not {tid}")
    return struct.pack(f"={len(ids)}i", *ids)


def _cgroup_descriptor(cgroup: int | str | os.PathLike[str] | HasFileno) -> tuple[int, bool]:
    """Return a descriptor of the directory, and whether it was opened here."""
    if isinstance(cgroup, str | os.PathLike):
        return os.open(cgroup, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), True
    if isinstance(cgroup, int):
        descriptor = cgroup
    elif hasattr(cgroup, "fileno"):
        descriptor = cgroup.fileno()
    else:
        raise TypeError(
            f"cgroup must be a path, a descriptor or have a fileno(), not {type(cgroup).__name__}"
        )
    if not 0 <= descriptor < _MAX_DESCRIPTOR:
        raise ValueError(f"cgroup must be a path or a descriptor, not {cgroup!r}")
    return descriptor, False
