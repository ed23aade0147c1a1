"""What the processes of a sandbox use, as /proc tells it: for limits where there is no cgroup.

What a sample finds may be over a moment later, so the limits that hang on it hold in part only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_UTIME, _CSTIME = 14 - 3, 17 - 3  # fields of proc_pid_stat(5), from the state on


class Sample(NamedTuple):
    """What was found.

    Attributes:
        memory: bytes in memory that are of no file.
        largest: bytes that the largest process has had in memory.
        user_time: seconds of processor time in programs, with what ended processes took.
        system_time: the same in the kernel.
    """

    memory: int = 0
    largest: int = 0
    user_time: float = 0.0
    system_time: float = 0.0


def sample(first: int) -> Sample:
    """Look at a process and its descendants.

    Args:
        first: the first process of a pid namespace.
    """
    memory = largest = 0
    user = system = 0
    depth = len(_status("self").get("NSpid", "").split())
    for pid in walk(first):
        with suppress(OSError):  # it has ended
            status = _status(pid)
            # What is not in the namespace has got the pid of one that was.
            if len(status.get("NSpid", "").split()) <= depth:
                continue
            memory += sum(_kilobytes(status, name) for name in ("RssAnon", "RssShmem")) << 10
            largest = max(largest, _kilobytes(status, "VmHWM") << 10)
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            utime, stime, cutime, cstime = map(int, fields[_UTIME : _CSTIME + 1])
            user, system = user + utime + cutime, system + stime + cstime
    return Sample(memory, largest, user / _TICKS, system / _TICKS)


def walk(first: int) -> Iterator[int]:
    """List a process and its descendants."""
    waiting = [first]
    while waiting:
        pid = waiting.pop()
        yield pid
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                    waiting += map(int, file.read().split())


def _status(pid: int | str) -> dict[str, str]:
    # Its name is any bytes that the process likes (proc_task_name, fs/proc/array.c).
    with open(f"/proc/{pid}/status", encoding="latin-1", newline="\n") as file:
        return {name: value for name, _, value in (line.partition(":") for line in file)}


def _kilobytes(status: dict[str, str], name: str) -> int:
    return int(status[name].split()[0]) if name in status else 0


def is_visible() -> bool:
    """Whether /proc shows the children of processes (CONFIG_PROC_CHILDREN)."""
    return os.path.exists("/proc/thread-self/children")
