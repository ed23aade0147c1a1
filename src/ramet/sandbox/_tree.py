"""What the processes of a sandbox use, as /proc tells it: for limits where there is no cgroup.

What a sample finds may be over a moment later, so the limits that hang on it hold in part only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_UTIME, _CSTIME, _STARTTIME = 14 - 3, 17 - 3, 22 - 3  # of proc_pid_stat(5), from the state on


class Sample(NamedTuple):
    """What was found.

    Attributes:
        memory: bytes in memory that are of no file.
        largest: bytes that the largest process has had in memory.
        user_time: seconds of processor time in programs, with what ended processes took, as far as
            they were seen or waited for.
        system_time: the same in the kernel.
    """

    memory: int = 0
    largest: int = 0
    user_time: float = 0.0
    system_time: float = 0.0


class Past:
    """What was seen of processes that may have ended since.

    The kernel adds the time of a process to its parent's if that waits for it, and only then.
    """

    def __init__(self) -> None:
        self._running = dict[tuple[int, int], tuple[int, int]]()
        self._ended = (0, 0)

    def add(self, running: dict[tuple[int, int], tuple[int, int]]) -> tuple[int, int]:
        """Take what runs now: times by pid and start. Gives the times of all that ever ran."""
        ended = [times for key, times in self._running.items() if key not in running]
        self._ended = _total([self._ended, *ended])
        self._running = running
        return _total([self._ended, *running.values()])


def _total(times: Iterable[tuple[int, int]]) -> tuple[int, int]:
    user, system = zip(*times, strict=True)
    return sum(user), sum(system)


def sample(first: int, past: Past | None = None, patience: float | None = None) -> Sample:
    """Look at a process and its descendants.

    Args:
        first: the first process of a pid namespace.
        past: what was seen of them before.
        patience: seconds; what is not come to by then is left out. None for ever.
    """
    deadline = None if patience is None else time.monotonic() + patience
    past = Past() if past is None else past
    memory = largest = 0
    waited_for = [(0, 0)]
    running = {}
    depth = len(status_of("self").get("NSpid", "").split())
    for pid in walk(first):
        if deadline is not None and time.monotonic() >= deadline:
            break
        with suppress(OSError):  # it has ended
            status = status_of(pid)
            # What is not in the namespace has got the pid of one that was.
            if len(status.get("NSpid", "").split()) <= depth:
                continue
            memory += sum(_kilobytes(status, name) for name in ("RssAnon", "RssShmem")) << 10
            largest = max(largest, _kilobytes(status, "VmHWM") << 10)
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            utime, stime, cutime, cstime = map(int, fields[_UTIME : _CSTIME + 1])
            running[pid, int(fields[_STARTTIME])] = utime, stime
            waited_for.append((utime + cutime, stime + cstime))
    # Each counts some that the other does not.
    user, system = max(_total(waited_for), past.add(running), key=sum)
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


def status_of(pid: int | str) -> dict[str, str]:
    """Read what proc_pid_status(5) has of a process."""
    # Its name is any bytes that the process likes (proc_task_name, fs/proc/array.c).
    with open(f"/proc/{pid}/status", encoding="latin-1", newline="\n") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def _kilobytes(status: dict[str, str], name: str) -> int:
    return int(status[name].split()[0]) if name in status else 0


def is_visible() -> bool:
    """Whether /proc shows the children of processes (CONFIG_PROC_CHILDREN)."""
    return os.path.exists("/proc/thread-self/children")
