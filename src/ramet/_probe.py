"""probe(): what clone and clone3 can do in this process. Starts nothing.

Each question is a call that cannot succeed: the pidfd is to be stored at an address that nothing
can be stored at, so that the kernel answers EFAULT once it has found all else to be in order
(copy_process, kernel/fork.c), or that the cgroup descriptor is bad.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from ramet import _native
from ramet._flags import CLONE3_ONLY, CloneFlags

_F = CloneFlags

# What a flag is tried with, where it cannot be tried alone. VM, since a copy of the memory would
# take the longer the larger this process is.
_COMPANIONS = {
    _F.THREAD: _F.VM | _F.SIGHAND,
    _F.PIDFD_AUTOKILL: _F.VM | _F.AUTOREAP | _F.NNP,
}
_NOWHERE = 1  # lies in the page at 0, which is never mapped
_NO_DESCRIPTOR = 2**31 - 1
_TOO_MANY_IDS = 2**31
_ENOUGH = 4096


class Support(NamedTuple):
    """What `ramet.probe` found.

    Attributes:
        clone3: whether clone3 can be called at all; if not, all else is about clone.
        flags: the flags that this process may use now.
        refused: for each other flag, why not, as the errno's name: such as ``"EPERM"`` (not
            allowed to this process), ``"EINVAL"`` (not known to the kernel), ``"ENOSPC"`` (a
            limit is reached) or ``"ENOSYS"`` (needs clone3).
        fields: of ``set_tid`` and ``cgroup``, those that can be used.
    """

    clone3: bool
    flags: CloneFlags
    refused: Mapping[CloneFlags, str]
    fields: frozenset[str]


def probe() -> Support:
    """Find out which flags and fields of clone this kernel and its seccomp filter allow.

    Starts nothing, and leaves nothing changed. Asked once in each process: the answer is about
    the credentials and filters of the thread that called first.

    Returns:
        What is allowed, and why the rest is not.

    Source: copy_process, kernel/fork.c.
    """
    return _probe(os.getpid())


@lru_cache(maxsize=1)
def _probe(_pid: int) -> Support:
    memory = bytearray(_ENOUGH)  # for a stack that nothing will run on, and for ids
    stack = _native.address(memory)

    def ask_clone3(flags: int, *, size: int = 64, ids: int = 0, cgroup: int = 0) -> int:
        pidfd = _NOWHERE if flags & _F.PIDFD else 0
        words = (pidfd, 0, 0, 0, stack, _ENOUGH, 0, stack if ids else 0)
        return -_native.clone3(_native.nothing, 0, size, flags, *words, ids, cgroup)

    def ask_clone(flags: int) -> int:
        if flags & CLONE3_ONLY:
            return errno.ENOSYS
        # These two are older than any seccomp filter, and exclude PIDFD here.
        flags &= ~(_F.PARENT_SETTID | _F.DETACHED)
        return -_native.clone(_native.nothing, 0, flags, stack + _ENOUGH, _NOWHERE, 0, 0)

    clone3 = ask_clone3(_F.PIDFD | _F.VM) not in {errno.ENOSYS, errno.EPERM}
    ask: Callable[[int], int] = ask_clone3 if clone3 else ask_clone
    errors = {flag: _ask_flag(ask, flag) for flag in CloneFlags}
    fields = set()
    if clone3:
        # A kernel that does not know a field says E2BIG before it looks at anything else.
        if ask_clone3(_F.VM, size=80, ids=_TOO_MANY_IDS) == errno.EINVAL:
            fields.add("set_tid")
        into = _F.VM | _F.INTO_CGROUP
        errors[_F.INTO_CGROUP] = ask_clone3(into, size=88, cgroup=_NO_DESCRIPTOR)
        if errors[_F.INTO_CGROUP] == errno.EBADF:
            errors[_F.INTO_CGROUP] = errno.EFAULT
            fields.add("cgroup")
    refused = {
        flag: errno.errorcode.get(error, str(error))
        for flag, error in errors.items()
        if error != errno.EFAULT
    }
    allowed = _F(sum(flag for flag in CloneFlags if flag not in refused))
    return Support(clone3, allowed, MappingProxyType(refused), frozenset(fields))


def _ask_flag(ask: Callable[[int], int], flag: CloneFlags) -> int:
    """Try one flag. EFAULT: it could be used."""
    error = ask(_F.PIDFD | flag | _COMPANIONS.get(flag, _F.VM))
    if flag == _F.NEWTIME and error == errno.EINVAL:
        error = ask(_F.PIDFD | flag)  # older kernels know it without VM only
    if flag == _F.THREAD and error == errno.EINVAL:
        error = errno.EFAULT  # before 6.9 it is the pidfd that a thread may not have
    return error
