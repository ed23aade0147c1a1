"""Functions for children of a zygote, in a module that is quick to import."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from typing import Any, NoReturn


def add(a: int, b: int = 1) -> int:
    return a + b


def nap() -> str:
    time.sleep(0.1)
    return "slept"


def ids() -> tuple[int, int]:
    return os.getpid(), os.getppid()


class MuteError(Exception):
    """Neither travels nor says anything."""

    def __reduce__(self) -> Any:
        raise TypeError("stays here")

    def __str__(self) -> str:
        raise TypeError("no text")


class OddError(Exception):
    """Cannot be made anew from its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("odd")
        self.both = one, two


def fail(kind: str) -> NoReturn:
    if kind == "odd":
        raise OddError(1, 2)
    if kind == "mute":
        raise MuteError
    if kind == "exit":
        sys.exit(7)
    raise LookupError(kind)


def unpicklable() -> Any:
    return threading.Lock()


def double(data: Any) -> Any:
    return [data, data]


def state() -> dict[str, Any]:
    return {
        "cwd": os.getcwd(),
        "umask": os.umask(0),
        "nice": os.nice(0),
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
        "env": dict(os.environ),
        "ids": (os.getresuid(), os.getresgid(), os.getgroups()),
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
        "sid": os.getsid(0) == os.getpid(),
        "threads": len(os.listdir("/proc/self/task")),
        "modules": sorted(sys.modules),
    }


def identity() -> dict[str, Any]:
    fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
    with open("/proc/self/uid_map") as uids, open("/proc/self/gid_map") as gids:
        return {
            "uid": os.getuid(),
            "gid": os.getgid(),
            "uid_map": uids.read().split(),
            "gid_map": gids.read().split(),
            "fds": fds,
        }


def targets() -> dict[int, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            found[int(fd)] = "the listing"
    return found


def interrupt_self() -> str:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    except KeyboardInterrupt:
        return "interrupted"
    return "not interrupted"


def write(fd: int, text: bytes) -> None:
    os.write(fd, text)


def trace_of_a_product(size: int) -> int:
    import numpy as np

    ones = np.ones((size, size))
    return int(np.trace(ones @ ones))


def segfault() -> NoReturn:
    import ctypes

    ctypes.string_at(0)
    raise AssertionError("there is something at address 0")


def note(path: str, seconds: float) -> int:
    """Leave a file with our id, and take some time."""
    with open(path, "x") as file:
        file.write(str(os.getpid()))
    time.sleep(seconds)
    return os.getpid()


class Unwilling:
    """Raises when it is pickled, or unpickled."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __reduce__(self) -> tuple[Any, ...]:
        if self.when == "pickling":
            raise ZeroDivisionError(self.when)
        return Unwilling._make, (self.when, os.getpid())

    @staticmethod
    def _make(when: str, pid: int) -> Unwilling:
        if pid != os.getpid():
            raise ZeroDivisionError(when)
        return Unwilling(when)


def make_unwilling(when: str) -> Unwilling:
    return Unwilling(when)
