"""clone(): one managed start of a C function in a new process or thread.

Puts together flags, pointers and stacks, and hands out Child and Thread.
"""

from __future__ import annotations

import errno
import operator
import os
import struct
import sys
from collections.abc import Callable, Sequence
from signal import SIGCHLD
from typing import NamedTuple, Protocol, TypeVar

from ramet._child import Child
from ramet._errors import advise, call_error, describe_call
from ramet._flags import CLONE3_ONLY, NAMESPACES, CloneFlags, check_flags, spell
from ramet._native import Descriptor, Pool, Task, start
from ramet._orphans import sweep, waiting
from ramet._pointers import PythonCallableError, c_string, function_address, pointer, word
from ramet._stacks import DEFAULT_STACK_SIZE, pool
from ramet._threads import Thread

_T = TypeVar("_T", bound=Task)
_R = TypeVar("_R")

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
    address = fn if type(fn) is int and 0 < fn < _WORD else _c_function(fn, flags)
    arg_address, arg_owner = (0, None) if arg is None else pointer(arg, "arg")
    if type(flags) is not int:  # the hash of an IntFlag is a call of Python
        flags = _integer(flags, "flags")
    stacks = pool if stack_size is DEFAULT_STACK_SIZE else _stacks_of(stack_size)
    if ptid is tls is ctid is cgroup is exit_signal is None and set_tid == ():
        return start_simply(address, arg_address, (fn, arg_owner), flags, stacks)

    if waiting:
        sweep()
    ptid_address, ptid_owner = word(ptid, "ptid")
    tls_address, tls_owner = pointer(tls, "tls")
    ctid_address, ctid_owner = word(ctid, "ctid")
    handle, wanted, signal, lasting = plan(
        flags,
        exit_signal,
        has_ptid=ptid is not None,
        has_tls=tls is not None,
        has_ctid=ctid is not None,
        has_cgroup=cgroup is not None,
    )
    keep = (fn, arg_owner, ptid_owner, tls_owner, ctid_owner) if lasting else None
    ids = pack_ids(set_tid)
    sys.audit("ramet.clone", address, wanted)
    directory, descriptor = cgroup_descriptor(cgroup)  # the first closes what it has opened
    call = Call(
        address,
        arg_address,
        wanted,
        signal,
        ptid_address,
        tls_address,
        ctid_address,
        descriptor,
        ids,
    )
    task = _start(handle, stacks, keep, call)
    del directory
    return task


def start_simply(
    fn: int, arg: int, owners: object, flags: int, stacks: Pool = pool
) -> Child | Thread:
    """Do what `clone` does, when all but the flags is left to its default: in a hurry.

    Args:
        fn: the address of the function.
        arg: its argument, as an address.
        owners: what must stay as long as the task may need it.
        flags: `CloneFlags`, as a plain int.
        stacks: where the stack comes from.
    """
    if waiting:
        sweep()
    handle, wanted, signal, lasting = _simple_plans.get(flags) or _simple_plan(flags)
    keep = owners if lasting else None
    sys.audit("ramet.clone", fn, wanted)
    if not _clone3.missing:
        task = start(handle, stacks, keep, fn, arg, wanted, signal)
        if type(task) is handle:
            return task
    return _start(handle, stacks, keep, Call(fn, arg, wanted, signal))


# --- the plan -----------------------------------------------------------------------------------

# The type of the handle, all flags, the exit signal, and whether the task needs its stack and
# arguments after the call has returned. A plain tuple is what is unpacked fastest.
_Plan = tuple[type[Child] | type[Thread], int, int, bool]


def plan(
    flags: int,
    exit_signal: int | None,
    *,
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
    lasting = thread or flags & (_F.VM | _F.VFORK) == _F.VM
    return Thread if thread else Child, int(flags), exit_signal, lasting


# Plans of flags alone, for all else is left to its default most of the time.
_simple_plans: dict[int, _Plan] = {}
_MOST_PLANS = 256


def _simple_plan(flags: int) -> _Plan:
    made = plan(flags, None, has_ptid=False, has_tls=False, has_ctid=False, has_cgroup=False)
    if len(_simple_plans) < _MOST_PLANS:
        _simple_plans[flags] = made
    return made


# --- the call -----------------------------------------------------------------------------------


class Call(NamedTuple):
    """The arguments of clone and clone3: what `_native.start` takes after what it keeps."""

    fn: int
    arg: int
    flags: int
    exit_signal: int
    ptid: int = 0
    tls: int = 0
    ctid: int = 0
    cgroup: int = -1
    set_tid: bytes = b""


def _start(handle: type[_T], stacks: Pool, keep: object, call: Call) -> _T:
    """Make the call for a task on a stack of its own."""

    def make(call: Call, use_clone: bool) -> _T | int:
        return start(handle, stacks, keep, *call, use_clone)

    return make_call(make, call, stacks.size)


def make_call(make: Callable[[Call, bool], _R | int], call: Call, stack_size: int = 0) -> _R:
    """Make a call with clone3, or with clone if clone3 is not to be had.

    Args:
        make: makes it, with clone if the second argument is true; returns -errno if it fails.
        call: what is asked for.
        stack_size: for errors.

    Returns:
        What `make` returns.

    Raises:
        OSError: the call is refused, or clone cannot do what is asked for.
    """
    error = errno.ENOSYS
    if not _clone3.missing:
        result = make(call, False)
        if not isinstance(result, int):
            return result
        error = -result
    if not _is_missing(error, call):
        raise _error("clone3", error, call, stack_size)
    lost = _lost_by_clone(call)
    if lost:
        advice = f"clone3 is not to be had here, and clone has no {lost}"
        raise _error("clone3", errno.ENOSYS, call, stack_size, advice)
    # Our part of the child resets the handlers.
    by_clone = call._replace(flags=call.flags & ~_CLEAR_SIGHAND)
    result = make(by_clone, True)
    if not isinstance(result, int):
        _clone3.missing = True
        return result
    if error == errno.EPERM == -result:  # so it was not about clone3
        raise _error("clone3", error, call, stack_size)
    raise _error("clone", -result, by_clone, stack_size)


def _is_missing(error: int, call: Call) -> bool:
    """Whether an errno of clone3 can mean that the call itself is what is refused."""
    if error == errno.EPERM:  # by the seccomp filter of an old container
        return not (call.set_tid or call.flags & _PRIVILEGED)
    return error == errno.ENOSYS


def _lost_by_clone(call: Call) -> str:
    """Name what clone(2) cannot do of what is asked for, if anything."""
    lost = [spell(call.flags & _CLONE3_FEATURES)] if call.flags & _CLONE3_FEATURES else []
    if call.set_tid:
        lost.append("set_tid")
    return ", ".join(lost)


def _error(name: str, error: int, call: Call, stack_size: int, advice: str = "") -> OSError:
    """Make the exception for a failed start."""
    description = describe_call(
        name,
        call.flags,
        exit_signal=call.exit_signal,
        stack_size=stack_size,
        parent_tid=call.ptid,
        tls=call.tls,
        child_tid=call.ctid,
        set_tid=list(struct.unpack(f"={len(call.set_tid) // 4}i", call.set_tid)),
        cgroup=call.cgroup if call.cgroup >= 0 else None,
    )
    advice = advice or advise(error, call.flags, set_tid=bool(call.set_tid))
    return call_error(error, description, advice)


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


def _stacks_of(stack_size: int) -> Pool:
    size = _integer(stack_size, "stack_size")
    if size == DEFAULT_STACK_SIZE:
        return pool
    if not 0 <= size <= sys.maxsize:
        raise ValueError(f"a stack of {size} bytes is not to be had: stack_size")
    return Pool(size, 0)


def pack_ids(set_tid: Sequence[int]) -> bytes:
    if isinstance(set_tid, str | bytes | bytearray | memoryview) or not isinstance(
        set_tid, Sequence
    ):
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


def cgroup_descriptor(
    cgroup: int | str | os.PathLike[str] | HasFileno | None,
) -> tuple[Descriptor | None, int]:
    """Return a descriptor of the directory, -1 for None, and what owns it if it was opened here."""
    if cgroup is None:
        return None, -1
    if isinstance(cgroup, str | os.PathLike):
        try:
            directory = Descriptor.directory(c_string(cgroup))
        except OSError as error:
            error.filename = os.fspath(cgroup)
            raise
        return directory, directory.number
    if isinstance(cgroup, int):
        number = cgroup
    elif hasattr(cgroup, "fileno"):
        number = cgroup.fileno()
    else:
        raise TypeError(
            f"cgroup must be a path, a descriptor or have a fileno(), not {type(cgroup).__name__}"
        )
    if not 0 <= number < _MAX_DESCRIPTOR:
        raise ValueError(f"cgroup must be a path or a descriptor, not {cgroup!r}")
    return None, number
