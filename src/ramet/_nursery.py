"""Children of a zygote between their birth and their work.

A child is ordered from the zygote, and then told its work by a socket of its own. Most of what
it costs lies between: its memory is copied, and what it writes to copied once more. So when two in
a row were alike the next one is ordered ahead, while nobody waits for it.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from contextlib import suppress

from ramet._child import Child
from ramet._flags import CloneFlags
from ramet._native import Channel
from ramet._zygote_main import LONGEST_MESSAGE

_Kind = tuple[int, bool]  # flags of clone3, and whether clone is to be used instead

# All other namespaces are as ours are at the time of the birth.
_ORDERED_AHEAD = int(CloneFlags.NEWPID | CloneFlags.NEWIPC | CloneFlags.NEWUSER | CloneFlags.PARENT)
_PATIENCE = 1  # seconds that a child without work may take to end


class Nursery:
    """The children of one zygote that have no work yet. The caller has a lock.

    An exception of a signal handler may come at any time: what it interrupts is done by the next
    call, or undone by the handle of a child.
    """

    def __init__(self, *, ahead: bool, foreign: bool = False) -> None:
        """Prepare for a zygote that is about to be started.

        Args:
            ahead: order children ahead.
            foreign: the zygote is the child of another process, and so are its children. That is in
                namespaces which nobody else knows of, so they are the same at any time.
        """
        self._ahead = ahead
        self._foreign = foreign
        self._channel = Channel(foreign)
        self._waiting: tuple[_Kind, Child] | None = None
        self._newest: Child | None = None  # while it is told its work
        self._previous: _Kind | None = None

    @property
    def descriptors(self) -> tuple[int, int]:
        """What the zygote needs: its end of a socket, and the file for the pids of births."""
        return self._channel.theirs, self._channel.births

    def hear(self, seconds: float | None) -> bytes:
        """Wait for what the zygote says when it is ready, or why it is not.

        Args:
            seconds: None for ever.

        Returns:
            Its words; none if it has ended without any.

        Raises:
            TimeoutError: it has said nothing.
        """
        self._channel.started()
        answers = select.poll()
        answers.register(self._channel.number, select.POLLIN)
        if not answers.poll(None if seconds is None else seconds * 1000):
            raise TimeoutError
        try:
            return os.read(self._channel.number, LONGEST_MESSAGE)
        except ConnectionError:
            return b""

    def start(
        self,
        flags: int,
        use_clone: bool,
        cgroup: int,
        work: bytes,
        descriptors: list[int],
        prepare: Callable[[Child], object] | None = None,
    ) -> Child | int | None:
        """Give work to a child.

        Args:
            flags: of clone3.
            use_clone: use clone instead.
            cgroup: the descriptor of a cgroup that flags say it is to start in.
            work: a struct ramet_work and what belongs to it.
            descriptors: go with it.
            prepare: is given the child before that is told.

        Returns:
            The child, which is killed if it is dropped before `_kill` is reset; -errno if the
            kernel refuses it; None if the zygote has ended.

        Raises:
            OSError: no descriptor is left, or one that goes with the work cannot.
        """
        kind = flags, use_clone
        if not self._collect():
            return None
        child = self._take(kind)
        if child is None or not self._tell(child, work, descriptors, prepare):
            born = self._bear(kind, cgroup)
            if born == -errno.EAGAIN and self._waiting is not None:
                self._drop_waiting()  # there may be room for one process less
                born = self._bear(kind, cgroup)
            if not isinstance(born, Child):
                return born
            child = born
            self._tell(child, work, descriptors, prepare)  # if it has ended, its status says how
        self._newest = None
        alike, self._previous = kind == self._previous, kind
        if alike and self._ahead and self._lasts(flags):
            with suppress(OSError):  # it is told to the one who needs one
                self._channel.order(*kind, True, -1)
        return child

    def _lasts(self, flags: int) -> bool:
        """Whether a child is the same if it is born earlier."""
        return self._foreign or not flags & ~_ORDERED_AHEAD

    def _collect(self) -> bool:
        """Take over the child that was ordered, if any. False if the zygote has ended."""
        kind = self._channel.ordered
        if kind is None:
            return True
        child = self._channel.birth(Child)
        if isinstance(child, Child) and self._lasts(kind[0]):
            self._drop_waiting()
            self._waiting = kind, child
        return child is not None

    def _take(self, kind: _Kind) -> Child | None:
        """Take the child that waits, if it is of this kind."""
        if self._waiting is None or self._waiting[0] != kind:
            return None
        if not self._foreign and self._waiting[1]._has_signals():
            self._drop_waiting()  # they were not for the work
            return None
        self._newest, self._waiting = self._waiting[1], None
        return self._newest

    def _bear(self, kind: _Kind, cgroup: int) -> Child | int | None:
        self._channel.order(*kind, False, cgroup)
        child = self._channel.birth(Child)
        if isinstance(child, Child):
            self._newest = child
        return child

    def _tell(
        self,
        child: Child,
        work: bytes,
        descriptors: list[int],
        prepare: Callable[[Child], object] | None,
    ) -> bool:
        """Tell a child its work. False if it has ended, as by a signal to all of its group."""
        if prepare is not None:
            prepare(child)
        told = child._tell(work, descriptors)
        if not told:
            _end(child)
        return told

    def _drop_waiting(self) -> None:
        if self._waiting is not None:
            child = self._waiting[1]
            self._waiting = None
            _end(child)

    def close(self, zygote: int) -> None:
        """End the zygote, and the children that have no work.

        Args:
            zygote: its pidfd, or -1. It is killed if it does not end by itself, but not reaped.
        """
        self._drop_waiting()
        self._channel.close(zygote)

    def forget(self) -> None:
        """Close what a fork has of it: all is left to the process that has started the zygote."""
        if self._waiting is not None:
            self._waiting[1].close()
        if self._newest is not None:
            self._newest.close()
        self._channel.close(-1)


def _end(child: Child) -> None:
    """See a child off that has no work."""
    child._dismiss()
    with suppress(ValueError, OSError):
        child.kill()  # it may be stopped
    with suppress(ValueError, OSError):
        child.wait(_PATIENCE)
