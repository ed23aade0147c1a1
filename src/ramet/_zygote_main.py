"""What a zygote runs: it imports what it was told to, and then copies itself for each request.

The other side is _zygote. Messages are pickles, from the process that has started this one.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from typing import Any, NamedTuple, NoReturn

from ramet import _values
from ramet._flags import CloneFlags
from ramet._fork import fork
from ramet._program import Program
from ramet._spawn import setup

LONGEST_MESSAGE = 64 * 1024
MOST_DESCRIPTORS = 64
_PID = struct.Struct("=q")
_PARENT = int(CloneFlags.PARENT)

# Libraries for linear algebra start threads when they are loaded; with one each they do not.
THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
)


# What a child of a zygote has no option for, or its zygote has seen to.
NOT_ASKED_FOR: dict[str, Any] = {
    "maps": None,
    "new_time": 0,
    "restore_signals": False,
    "process_group": None,
    "scheduler": None,
    "ioprio": None,
    "pdeathsig": None,
    "parent_pidfd": None,
    "closes": False,
}


class Request(NamedTuple):
    """What a child is to be and do. Its descriptors come along: function, result, then `fds`."""

    flags: int
    fds: tuple[int, ...]  # the numbers in the child
    env: dict[str, str] | None
    setup: dict[str, Any]  # arguments of _spawn.setup, beside NOT_ASKED_FOR
    cgroup: bool  # the last descriptor is its directory


def main(number: int) -> None:
    """Serve requests until the other side closes the socket."""
    with socket.socket(fileno=number) as channel:
        os.set_inheritable(number, False)
        error = _prepare(pickle.loads(channel.recv(LONGEST_MESSAGE)))  # noqa: S301 - our parent's
        channel.send(_PID.pack(0) + error.encode())
        if not error:
            gc.collect()
            gc.freeze()
            while _serve(channel):
                pass


def _serve(channel: socket.socket) -> bool:
    """Do what the next request asks for. False if there will be no more."""
    message, descriptors, _, _ = socket.recv_fds(channel, LONGEST_MESSAGE, MOST_DESCRIPTORS)
    if not message:
        return False
    try:
        _make_child(channel, pickle.loads(message), descriptors)  # noqa: S301 - our parent's
    except BaseException as problem:  # noqa: BLE001 - it is told, and the zygote goes on
        channel.send(_PID.pack(-1) + pickle.dumps(_portable(problem)))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return True


def _prepare(told: dict[str, Any]) -> str:
    """Become like the other side, and import. Returns what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the other side decides
    sys.path[:] = told["path"]
    if told["main"]:
        from multiprocessing import spawn  # noqa: PLC0415

        spawn.prepare(told["main"])
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")
    for name in told["preload"]:
        before = _threads()
        try:
            importlib.import_module(name)
        except BaseException:  # noqa: BLE001 - it is told
            return f"preloading {name} failed:\n{traceback.format_exc()}"
        if _threads() > before:
            return (
                f"preloading {name} has started threads, of which copies would have none: set the "
                "variables of its libraries that say how many there are, such as "
                f"{', '.join(THREAD_VARIABLES[:3])}, or import it in the functions"
            )
    return ""


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _make_child(channel: socket.socket, request: Request, descriptors: list[int]) -> None:
    cgroup = descriptors[-1] if request.cgroup else None
    child = fork(request.flags | _PARENT, cgroup=cgroup)
    if child is None:
        _run(channel, request, descriptors)
    # Not a child of ours: the other side waits for it.
    socket.send_fds(channel, [_PID.pack(child.pid)], [child.pidfd])
    child.close()


def _run(channel: socket.socket, request: Request, descriptors: list[int]) -> NoReturn:
    """Do what the child is there for, and end."""
    code = 1
    try:
        channel.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        function, result = descriptors[:2]
        try:
            # Before the setup, after which the files of modules may be out of reach.
            fn, args, kwargs = _values.load(function)
            # Out of the way of the numbers that the child is to have.
            result = fcntl.fcntl(result, fcntl.F_DUPFD_CLOEXEC, max(request.fds, default=2) + 1)
            _set_up(request, descriptors[2:])
            _close_all_but({*request.fds, result})
            outcome: tuple[Any, ...] = ("value", fn(*args, **kwargs))
            code = 0
        except BaseException as error:  # noqa: BLE001 - it is told
            outcome = ("error", _portable(error), traceback.format_exc())
        try:
            _values.dump(outcome, result)
        except BaseException as error:  # noqa: BLE001 - it is told
            code = 1
            os.ftruncate(result, 0)
            _values.dump(("error", _portable(error), traceback.format_exc()), result)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    finally:
        os._exit(code)


def _set_up(request: Request, descriptors: list[int]) -> None:
    numbers = tuple(zip(request.fds, descriptors, strict=False))
    program: Program = setup.__wrapped__(descriptors=numbers, **request.setup, **NOT_ASKED_FOR)
    program._run_in_place()
    if request.env is not None:
        os.environ.clear()
        os.environ.update(request.env)


def _close_all_but(kept: set[int]) -> None:
    first = 0
    for fd in sorted(kept):
        if first < fd:
            os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _portable(error: BaseException) -> BaseException:
    """Make what can be pickled of an exception."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - just made
    except Exception:  # noqa: BLE001 - whatever is wrong with it
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
