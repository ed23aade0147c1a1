"""Children of a zygote between their birth and their work.

A child is ordered from the zygote, and then told its work by a socket of its own. Most of what
it costs lies between: its memory is copied, and what it writes to copied once more. So one is
ordered ahead, while nobody waits for it, like the one that was just needed.
"""

from __future__ import annotations

import os
import select
import struct
from contextlib import suppress
from typing import NamedTuple

from ramet import _native, _values
from ramet._child import Child
from ramet._flags import CloneFlags
from ramet._native import Descriptor
from ramet._zygote_main import LONGEST_MESSAGE

_ORDER = struct.Struct("=3Q")  # struct ramet_order, src/native/zygote.h
_PID = struct.Struct("=i")
_PATIENCE = 1  # seconds that a zygote may take to end, and a child that has no work
# Parts of the order that leave a child as it would be were it born later: other namespaces are
# copies of ours as it is at that time.
_NEW_ONES_ARE_EMPTY = CloneFlags.NEWPID | CloneFlags.NEWNET | CloneFlags.NEWIPC | CloneFlags.NEWUSER
_ORDERED_AHEAD = int(_NEW_ONES_ARE_EMPTY | CloneFlags.PARENT)


class _Order(NamedTuple):
    """What is to be born."""

    flags: int
    use_clone: bool


class _Newborn(NamedTuple):
    """A child that waits for its work; it is killed if it is dropped."""

    child: Child
    socket: Descriptor


class Nursery:
    """The children of one zygote that have no work yet. The caller has a lock.

    Attributes:
        theirs: the zygote's end of the socket by which it is asked.
        births: the file in which the zygote has the pid of the last birth.
    """

    def __init__(self, *, ahead: bool) -> None:
        """Prepare for a zygote that is about to be started.

        Args:
            ahead: keep a child of each kind that is in use.
        """
        self._ahead = ahead
        self._ready: dict[_Order, _Newborn] = {}
        self._ordered: tuple[_Order, Descriptor] | None = None  # ahead, and not born yet
        self._last = 0  # the pid of the last child whose birth we know of
        self._channel, self.theirs = Descriptor.pair()
        self.births = _values.new_file("births")
        os.ftruncate(self.births, _PID.size)

    def hear(self, seconds: float | None) -> bytes:
        """Wait for what the zygote says when it is ready, or why it is not.

        Args:
            seconds: None for ever.

        Returns:
            Its words; none if it has ended without any.

        Raises:
            TimeoutError: it has said nothing.
        """
        self.theirs.close()
        if not _is_readable(self._channel.number, seconds):
            raise TimeoutError
        try:
            return os.read(self._channel.number, LONGEST_MESSAGE)
        except ConnectionError:
            return b""

    def start(
        self, flags: int, use_clone: bool, cgroup: int, work: bytes, descriptors: list[int]
    ) -> Child | int | None:
        """Give work to a child.

        If this is interrupted the nursery is to be closed.

        Args:
            flags: of clone3.
            use_clone: use clone instead.
            cgroup: the descriptor of a cgroup that flags say it is to start in.
            work: a struct ramet_work and what belongs to it.
            descriptors: go with it.

        Returns:
            The child, which is killed if it is dropped before `_kill` is reset; -errno if the
            kernel refuses it; None if the zygote has ended.
        """
        order = _Order(flags, use_clone)
        if self._ordered is not None:
            ordered, ours = self._ordered
            early = self._born(ours)
            self._ordered = None
            if isinstance(early, _Newborn):
                self._ready[ordered] = early
        newborn = self._ready.pop(order, None)
        if newborn is None or not _tell(newborn, work, descriptors):
            born = self._born(self._order(order, cgroup))
            if not isinstance(born, _Newborn):
                return born
            newborn = born
            _tell(newborn, work, descriptors)  # if it has ended, its status says how
        newborn.socket.close()
        if self._ahead and not flags & ~_ORDERED_AHEAD:
            with suppress(OSError):  # it is told to the one who needs one
                self._ordered = order, self._order(order, ahead=True)
        return newborn.child

    def _order(self, order: _Order, cgroup: int = -1, *, ahead: bool = False) -> Descriptor:
        """Order a child. Returns the socket by which it is told its work."""
        ours, theirs = Descriptor.pair()
        descriptors = [theirs.number, *([cgroup] if cgroup >= 0 else [])]
        # If the zygote has ended, it is the answer that is not there.
        _native.tell(self._channel.number, _ORDER.pack(*order, ahead), descriptors)
        return ours

    def _born(self, ours: Descriptor) -> _Newborn | int | None:
        """Wait for what was ordered."""
        child = self._birth()
        return _Newborn(child, ours) if isinstance(child, Child) else child

    def _birth(self) -> Child | int | None:
        child = _native.birth(Child, self._channel.number)
        if isinstance(child, Child):
            self._last = child.pid
        return child

    def close(self) -> None:
        """End the zygote, which is not waited for, and the children that have no work."""
        children = [newborn.child for newborn in self._ready.values()]
        untold = 0
        try:
            with suppress(OSError):
                self._channel.shutdown()  # it answers what was ordered, and ends
            while _is_readable(self._channel.number, _PATIENCE):
                child = self._birth()
                if child is None:
                    untold = self._untold()
                    break
                if isinstance(child, Child):
                    children.append(child)
        finally:
            self.forget()
        for child in children:
            _end(child)
        if untold:
            _reap(untold)

    def _untold(self) -> int:
        """Return the pid of a child whose zygote was killed before it could tell it, or 0."""
        (pid,) = _PID.unpack(os.pread(self.births, _PID.size, 0))
        return 0 if pid == self._last else int(pid)

    def forget(self) -> None:
        """Close what we have: all else is left to the process that this one is a fork of."""
        self._channel.close()
        os.close(self.births)
        for newborn in self._ready.values():
            newborn.socket.close()
        self._ready.clear()
        if self._ordered is not None:
            self._ordered[1].close()
            self._ordered = None


def _is_readable(fd: int, seconds: float | None) -> bool:
    entry = select.poll()
    entry.register(fd, select.POLLIN)
    return bool(entry.poll(None if seconds is None else seconds * 1000))


def _tell(newborn: _Newborn, work: bytes, descriptors: list[int]) -> bool:
    """Tell a child its work. False if it has ended, as by a signal to all of its group."""
    if _native.tell(newborn.socket.number, work, descriptors):
        return True
    newborn.socket.close()
    _end(newborn.child)
    return False


def _end(child: Child) -> None:
    """See a child off that has no work: it ends, since its socket is closed."""
    with suppress(ValueError, OSError):
        child.kill()  # also if it was stopped
    with suppress(ValueError, OSError):
        child.wait(_PATIENCE)


def _reap(pid: int) -> None:
    """Wait for a child of which there is no handle: it ends like the others."""
    with suppress(OSError):  # somebody else has, by now
        pidfd = os.pidfd_open(pid)
        try:
            if _is_readable(pidfd, _PATIENCE):
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        finally:
            os.close(pidfd)
