"""cgroup v2: a group for each sandbox, with limits for all that is in it.

Groups are made where an administrator, or systemd, has delegated that; nothing of what is there is
changed.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterable, Mapping
from contextlib import suppress

from ramet._native import Descriptor

_OF_SWAP = "memory.swap.max"
_PERIOD = 100_000  # microseconds, over which cpu.max counts
_PATIENCE = 1000  # milliseconds that the end of what was killed may take


def find_parent(
    controllers: Iterable[str], given: str | os.PathLike[str] | None
) -> tuple[str | None, str]:
    """Find a directory in which groups with some controllers can be made.

    Args:
        controllers: such as ``"memory"``.
        given: the directory to take; by default that of our own group, or the nearest above it
            that will do.

    Returns:
        The directory, and nothing; or None, and why there is none.

    Source: Documentation/admin-guide/cgroup-v2.rst, "Delegation".
    """
    wanted = set(controllers)
    if given is not None:
        directory = os.path.abspath(given)  # also when our working directory is another by then
        reason = _fault(directory, wanted) or _barrier(directory)
        return (None, reason) if reason else (directory, "")
    mount, own = _mount_point(), _own_group()
    if mount is None or own is None:
        return None, "cgroup v2 is not mounted"
    reason = ""
    path = own
    while True:
        directory = mount + path.rstrip("/")
        fault = _fault(directory, wanted)
        if not fault:
            return directory, ""
        reason = reason or fault
        if path == "/":
            return None, f"{reason}; an administrator can delegate a group to you, see docs"
        path = os.path.dirname(path)


def _fault(directory: str, wanted: set[str]) -> str:
    """Say what keeps groups from being made in a directory."""
    try:
        with open(f"{directory}/cgroup.subtree_control") as file:
            missing = wanted - set(file.read().split())
    except OSError as error:
        return f"{directory} is no group of cgroup v2: {error.strerror}"
    if missing:
        return f"{directory} does not give the controller {', '.join(sorted(missing))} to groups"
    if not os.access(directory, os.W_OK) or not os.access(f"{directory}/cgroup.procs", os.W_OK):
        return f"no groups can be made in {directory}: {os.strerror(errno.EACCES)}"
    return ""


def _barrier(directory: str) -> str:
    """Say what keeps processes of our own group from those in a directory.

    Whoever moves one, or starts it there, needs the group above both as well
    (cgroup_procs_write_permission, kernel/cgroup/cgroup.c).
    """
    mount, own = _mount_point(), _own_group()
    directory = os.path.realpath(directory)
    if mount is None or own is None or os.path.commonpath([mount, directory]) != mount:
        return ""
    above = os.path.commonpath([directory, mount + own])
    if os.access(f"{above}/cgroup.procs", os.W_OK):
        return ""
    return (
        f"no process can be moved from {mount}{own} to {directory}: {above}/cgroup.procs may not "
        "be written to; start this in a group of that directory"
    )


def _mount_point() -> str | None:
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split()
            if fields[fields.index("-") + 1] == "cgroup2":
                return fields[4].rstrip("/")
    return None


def _own_group() -> str | None:
    with open("/proc/self/cgroup") as file:
        for line in file:
            if line.startswith("0::"):
                return line[3:].rstrip("\n")
    return None


class Group:
    """A group that was made for one sandbox."""

    def __init__(self, parent: str, settings: Mapping[str, str]) -> None:
        """Make it.

        Args:
            parent: as `find_parent` returns it.
            settings: what is written to its files.

        Raises:
            OSError: that is not allowed.
        """
        _sweep()
        self._owner = os.getpid()
        self._path = os.path.join(parent, f"ramet-{os.getpid()}-{os.urandom(6).hex()}")
        os.mkdir(self._path)
        try:
            for name, value in settings.items():
                try:
                    self._write(name, value)
                except FileNotFoundError:
                    if name != _OF_SWAP or _has_swap():  # swapaccount=0
                        raise
            self.descriptor = Descriptor.directory(os.fsencode(self._path))
        except BaseException:
            self.close()
            raise

    def number(self, name: str, key: str | None = None) -> int | None:
        """Read a number from one of its files; None if there is none."""
        try:
            with open(f"{self._path}/{name}") as file:
                text = file.read()
        except OSError:
            return None
        if key is None:
            return int(text)
        found = dict(line.split() for line in text.splitlines())
        return int(found[key]) if key in found else None

    def add(self, pid: int) -> None:
        """Move a process into it."""
        with suppress(ProcessLookupError):  # it has ended
            self._write("cgroup.procs", str(pid))

    def kill(self) -> None:
        """Kill all that is in it (Linux 5.14; before, the pid namespace has to do)."""
        with suppress(OSError):
            self._write("cgroup.kill", "1")

    def _write(self, name: str, value: str) -> None:
        fd = os.open(f"{self._path}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    def close(self) -> None:
        """Remove it, with all that is in it."""
        try:
            os.rmdir(self._path)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            self.kill()
            self._wait()
            _abandoned.add(self._path)  # if it takes longer the next one removes it
            _sweep()

    def __del__(self) -> None:
        # What was started in it, and dropped, may run on.
        path = getattr(self, "_path", None)
        if path is not None and self._owner == os.getpid():  # no fork of ours
            _abandoned.add(path)
            _sweep()

    def _wait(self) -> None:
        """Wait until nothing is in it."""
        with open(f"{self._path}/cgroup.events") as file:
            poll = select.poll()
            poll.register(file, select.POLLPRI)
            for _ in range(2):
                file.seek(0)
                if "populated 0" in file.read():
                    return
                poll.poll(_PATIENCE)


def _has_swap() -> bool:
    try:
        with open("/proc/swaps") as file:
            return len(file.readlines()) > 1
    except FileNotFoundError:
        return False


_abandoned = set[str]()


def _sweep() -> None:
    """Remove the groups that nobody has, as far as nothing is in them any more."""
    for path in list(_abandoned):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            pass
        except OSError:
            continue
        _abandoned.discard(path)


def settings(
    memory: int | None, swap: int | None, processes: int | None, cpu: float | None
) -> dict[str, str]:
    """Turn limits into what is written to the files of a group.

    Source: Documentation/admin-guide/cgroup-v2.rst.
    """
    found = {}
    if memory is not None:
        found = {
            "memory.max": str(memory),
            "memory.oom.group": "1",
            _OF_SWAP: str(swap or 0),
        }
    if processes is not None:
        found["pids.max"] = str(processes)
    if cpu is not None:
        found["cpu.max"] = f"{max(round(cpu * _PERIOD), 1000)} {_PERIOD}"
    return found


CONTROLLERS = {"memory": "memory", "swap": "memory", "processes": "pids", "cpu": "cpu"}
