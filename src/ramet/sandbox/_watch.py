"""Watch: feed a child, keep what it writes, and kill it at a limit. Knows nothing of policies."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterable

from ramet._child import Child
from ramet._native import Descriptor

_CHUNK = 1 << 16
_MILLISECONDS = 1000
_LONGEST = 1 << 30
_SAMPLES = 0.02  # seconds between two


class Output:
    """A pipe that a child writes to, and what came out of it."""

    def __init__(self, reader: Descriptor) -> None:
        self.reader = reader
        self.data = bytearray()
        self.added = 0  # by the last reading
        self.truncated = False
        os.set_blocking(reader.number, False)

    def read(self, room: int) -> bool:
        """Read what is there. False if there will be no more; none is kept that has no room."""
        self.added = 0
        try:
            data = os.read(self.reader.number, _CHUNK)
        except BlockingIOError:
            return True
        self.added = min(len(data), room)
        self.data += data[:room]
        self.truncated = len(data) > room
        return bool(data)


class Input:
    """A pipe that a child reads from, and what goes into it."""

    def __init__(self, writer: Descriptor, data: bytes) -> None:
        self.writer = writer
        self._rest = memoryview(data)
        os.set_blocking(writer.number, False)

    def write(self) -> bool:
        """Write what there is room for. False if that is all."""
        try:
            written = os.write(self.writer.number, self._rest[:_CHUNK])
        except BlockingIOError:
            return True
        except BrokenPipeError:  # nobody reads it
            return False
        self._rest = self._rest[written:]
        return len(self._rest) > 0


class Watch:
    """Watches one child, which has not been waited for afterwards."""

    def __init__(
        self,
        child: Child,
        outputs: Iterable[Output],
        source: Input | None,
        *,
        deadline: float | None,
        room: int,
        examine: Callable[[], str | None] | None,
        on_kill: Callable[[], None],
        cancel: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            child: the child.
            outputs: what it writes to.
            source: what it reads.
            deadline: when it is killed, by time.monotonic().
            room: bytes that all outputs together may have; with more it is killed.
            examine: is called from time to time, and says why the child is to be killed.
            on_kill: is called before.
            cancel: a descriptor; when it can be read the child is killed.
        """
        self._child = child
        self._outputs = {output.reader.number: output for output in outputs}
        self._source = source
        self._deadline = deadline
        self._room = room
        self._examine = examine
        self._next_look = time.monotonic()
        self._on_kill = on_kill
        self._reason: str | None = None
        self._poll = select.poll()
        self._poll.register(child.pidfd, select.POLLIN)
        for number in self._outputs:
            self._poll.register(number, select.POLLIN)
        if source is not None:
            self._poll.register(source.writer.number, select.POLLOUT)
        self._cancel = cancel
        if cancel is not None:
            self._poll.register(cancel, select.POLLIN)

    def run(self) -> str | None:
        """Wait until the child has ended, and read all that it has written.

        Returns:
            Why it was killed: ``"timeout"``, ``"output"``, ``"cancelled"``, what `examine` said;
            None if it was not.
        """
        ended = False
        while not ended:
            ready = {number for number, _ in self._poll.poll(self._patience())}
            for number in ready & self._outputs.keys():
                self._take(number)
            if self._source is not None and self._source.writer.number in ready:
                self._feed(self._source)
            ended = self._child.pidfd in ready
            if not ended:
                self._check_limits(self._cancel in ready)
        # All that could write has ended. What is left in the pipes is bounded by their size, unless
        # somebody outside was given their ends.
        for number in list(self._outputs):
            while number in self._outputs and _has_more(number):
                self._take(number)
        return self._reason

    def _patience(self) -> float | None:
        """Milliseconds until there is something to do."""
        if self._reason is not None:
            return None
        times = [] if self._deadline is None else [self._deadline]
        times += [] if self._examine is None else [self._next_look]
        if not times:
            return None
        # poll counts in whole milliseconds, of which it takes an int: a little later, not over and
        # over; and once in a while where it is far away.
        return min(max(min(times) - time.monotonic(), 0) * _MILLISECONDS + 1, _LONGEST)

    def _take(self, number: int) -> None:
        """Read from an output."""
        output = self._outputs[number]
        more = output.read(self._room)
        self._room = max(self._room - output.added, 0)
        if output.truncated:
            self._kill("output")
        if not more or output.truncated:
            self._poll.unregister(number)
            del self._outputs[number]

    def _feed(self, source: Input) -> None:
        if not source.write():
            self._poll.unregister(source.writer.number)
            source.writer.close()
            self._source = None

    def _check_limits(self, cancelled: bool) -> None:
        now = time.monotonic()
        if cancelled and self._cancel is not None:
            self._poll.unregister(self._cancel)
            self._cancel = None
            self._kill("cancelled")
        elif self._reason is not None:
            return  # it is about to end
        elif self._deadline is not None and now >= self._deadline:
            self._kill("timeout")
        elif self._examine is not None and now >= self._next_look:
            why = self._examine()
            # Of thousands of processes it takes long: no more than half of our time.
            done = time.monotonic()
            self._next_look = max(now + _SAMPLES, done + (done - now))
            if why:
                self._kill(why)

    def _kill(self, why: str) -> None:
        if self._reason is None:
            self._reason = why
            self._on_kill()
            self._child.kill()


def _has_more(number: int) -> bool:
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))
