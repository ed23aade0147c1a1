"""fork(): a copy of this process that goes on in Python, with what clone3 can do."""

from __future__ import annotations

import operator
import os
import sys
import time
from collections.abc import Sequence
from functools import lru_cache

from ramet import _native
from ramet._child import Child
from ramet._clone import Call, HasFileno, cgroup_descriptor, make_call, pack_ids, plan
from ramet._flags import CloneFlags, spell

_F = CloneFlags
_CLEAR_SIGHAND = int(_F.CLEAR_SIGHAND)
# With FILES each object that has a descriptor, such as the handle of another child, would close it
# in both processes.
_NOT_FOR_COPIES = int(
    _F.VM | _F.VFORK | _F.FILES | _F.SIGHAND | _F.THREAD | _F.SETTLS | _F.DETACHED
    | _F.PARENT_SETTID | _F.CHILD_SETTID | _F.CHILD_CLEARTID
)  # fmt: skip


def fork(
    flags: int = 0,
    *,
    exit_signal: int | None = None,
    set_tid: Sequence[int] = (),
    cgroup: int | str | os.PathLike[str] | HasFileno | None = None,
) -> Child | None:
    """Copy this process, as os.fork, with what clone3 can do.

    The functions of os.register_at_fork are called in their order, the copy starts in the
    namespaces and the cgroup that are asked for, and has a pidfd from birth. As after os.fork the
    child must leave by os._exit, or by returning to where the program ends.

    The C library does not know of it: what was registered by pthread_atfork is not called. So this
    is for a process of one thread; for others, and for large ones, there is the zygote.

    Args:
        flags: `CloneFlags`, such as namespaces, and what is shared beside the memory. CLEAR_SIGHAND
            is not added here: Python's handlers stay.
        exit_signal: as of `ramet.clone`.
        set_tid: as of `ramet.clone`.
        cgroup: as of `ramet.clone`.

    Returns:
        A `Child`; in the child itself None.

    Raises:
        RuntimeError: this process has several threads, is ending, or this is not the main
            interpreter; or the C library's copy of the thread id is not to be found.
        ValueError: flags that do not go together, or are not for a copy of the memory.
        TypeError: an argument of a wrong kind.
        OSError: the kernel refuses; the message has the call in words.

    Source: clone(2), fork(2), os.fork.
    """
    flags = operator.index(flags)
    check_flags_of_copy(flags)
    if _native.interpreter_id() != 0:
        raise RuntimeError("fork is not for subinterpreters: their process is the main one's")
    if sys.is_finalizing():
        raise RuntimeError("can't fork at interpreter shutdown")
    _check_threads()
    _, wanted, signal, _ = plan(
        flags,
        exit_signal,
        has_ptid=False,
        has_tls=False,
        has_ctid=False,
        has_cgroup=cgroup is not None,
    )
    wanted &= ~_CLEAR_SIGHAND | flags
    ids = pack_ids(set_tid)
    offset = thread_id_offset()
    sys.audit("os.fork")
    sys.audit("ramet.fork", wanted)
    directory, descriptor = cgroup_descriptor(cgroup)  # the first closes what it has opened

    def make(call: Call, use_clone: bool) -> Child | int | None:
        return _native.fork(
            Child, call.flags, call.exit_signal, call.cgroup, call.set_tid, use_clone, offset
        )

    child = make_call(make, Call(0, 0, wanted, signal, cgroup=descriptor, set_tid=ids))
    del directory
    return child


@lru_cache(maxsize=1)
def thread_id_offset() -> int:
    """Find where the C library has its copy of a thread's id, within what it knows of the thread.

    If several words of this thread look like it, those of another one decide.

    Raises:
        RuntimeError: it is not to be found.
    """
    found = set(_native.thread_id_offsets())
    if len(found) > 1:
        import threading  # noqa: PLC0415

        thread = threading.Thread(
            target=lambda: found.intersection_update(_native.thread_id_offsets())
        )
        thread.start()
        thread.join()
        deadline = time.monotonic() + 1
        while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
            time.sleep(0.0001)  # join returns a moment before the thread has ended
    if len(found) != 1:
        raise RuntimeError(
            "the C library's copy of the thread id, which has to be kept right in the child, is "
            "not to be found"
        )
    return found.pop()


def check_flags_of_copy(flags: int) -> None:
    """Refuse flags that are not for a copy of the memory.

    Raises:
        ValueError: there are such.
    """
    if flags & _NOT_FOR_COPIES:
        raise ValueError(f"{spell(flags & _NOT_FOR_COPIES)}: not for a copy of this process")


def _check_threads() -> None:
    """Refuse a process of several threads: a lock that one of the others holds would stay locked.

    Raises:
        RuntimeError: there are several.
    """
    try:
        count = len(os.listdir("/proc/self/task"))
    except OSError:
        count = 0  # without /proc only Python's own are known
    if count == 1:
        return
    import threading  # noqa: PLC0415 - where it matters it is there already

    count = count or threading.active_count()
    if count == 1:
        return
    names = [thread.name for thread in threading.enumerate() if thread.ident is not None]
    raise RuntimeError(
        f"this process has {count} threads (those of Python: {', '.join(names)}), and what the "
        "others have locked would stay locked in a copy of one of them: use a process that is "
        "started by exec (ramet.spawn)"
    )
