"""Calls: Python functions in fresh children of a zygote that lives in the sandbox.

The zygote is the program of the sandbox's first process, and its children are siblings of it. So
all of them end with that process, which tells what became of each. A child has
namespaces of its own in those of the sandbox, and is confined before its function is looked at.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from signal import SIGKILL
from threading import RLock
from typing import Any
from weakref import proxy

from ramet import _values
from ramet._child import Child, ExitStatus
from ramet._native import Descriptor
from ramet._program import Program
from ramet._zygote import DESCRIPTORS, Options, Zygote, ZygoteError, setup_error
from ramet.sandbox import _data, _inside
from ramet.sandbox._cgroup import Group
from ramet.sandbox._plan import OUTCOME, make_call_plans
from ramet.sandbox._policy import Policy
from ramet.sandbox._run import Record, Report, Watched, failed, open_streams, start
from ramet.sandbox._verdict import Verdict

_LAST_WORDS = 4096
_MOST_WORDS = 1 << 20
_REAPED = -1  # the pid of what was waited for, in pidfd's fdinfo
_PATIENCE = 1  # seconds within which the first process tells of what has ended

Function = tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]


class _Reports:
    """What the first process tells of the children of a zygote, to several threads."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._lock = RLock()

    def of_zygote(self) -> Record | None:
        """Give what was told of the zygote itself; None if it was killed with the first process."""
        return self._report.read()

    def expect(self, pid: int) -> None:
        """Keep what is told of a child from now on, and not of who had this pid before."""
        with self._lock:
            self._report.read()
            self._report.others.pop(pid, None)
            self._report.expected.add(pid)

    def forget(self, pid: int) -> None:
        """Do not keep it any more: nobody will ask."""
        with self._lock:
            self._report.expected.discard(pid)
            self._report.others.pop(pid, None)

    def of(self, pid: int) -> Record | None:
        """Wait for what is told of a child that is expected and has ended, and give it once."""
        deadline = time.monotonic() + _PATIENCE
        poll = select.poll()
        poll.register(self._report.reader.number, select.POLLIN)
        while True:
            with self._lock:  # of several threads one reads it, for all
                self._report.read()
                record = self._report.others.pop(pid, None)
                if record is not None or time.monotonic() >= deadline:
                    return record
                if any(event & select.POLLHUP for _, event in poll.poll(1)):
                    deadline = 0  # what was told before can still be read


class InnerZygote(Zygote):
    """A zygote in a sandbox."""

    _foreign = True

    def __init__(self, policy: Policy) -> None:
        """Prepare.

        Args:
            policy: the policy.

        Raises:
            ProtectionError: something that is required cannot be had.
            ValueError: there is no Python in the sandbox.
        """
        super().__init__((_inside.__name__, *policy.preload), main=False)
        self._policy = proxy(policy)  # which has us
        self._holder, self.plan = make_call_plans(policy, DESCRIPTORS)
        self.options = Options(flags=self.plan.flags, program=self.plan.program)
        self._words = _values.new_file("words")
        self.reports: _Reports | None = None

    def _launch(self, args: list[str], fds: Mapping[int, int]) -> Child:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.ftruncate(self._words.number, 0)
        try:
            streams = {0: null, 1: null, 2: self._words.number}
            # As the preset shows the interpreter. It imports nothing from where it is or from the
            # user's own directory (HOME): what calls have put there would be outside of them.
            command = [os.path.abspath(args[0]), "-sP", *args[1:]]
            started = start(self._policy, self._holder, command, {**streams, **fds})
        finally:
            os.close(null)
        self.reports = _Reports(started.report)
        return started.child

    def _told(self) -> dict[str, Any]:
        path = list(map(os.path.abspath, sys.path))  # "" is the working directory, there another
        return {**super()._told(), "path": path, "authkey": None}  # a secret

    def _died(self) -> ZygoteError:
        error = super()._died()
        record = None if self.reports is None else self.reports.of_zygote()
        if record is None:
            return error
        if record.status is None:
            text = f"execve({sys.executable!r}, ...) failed: {os.strerror(record.error)}"
            return ZygoteError(f"the zygote can't be started in the sandbox: {text}")
        size = os.fstat(self._words.number).st_size
        words = os.pread(self._words.number, _LAST_WORDS, max(size - _LAST_WORDS, 0))
        text = f"the zygote {record.status._words()} in the sandbox"
        return ZygoteError(f"{text}\n{words.decode(errors='replace')}".rstrip())


def call(zygote: InnerZygote, function: Function, *, data: bytes, timeout: float | None) -> Verdict:
    """Call a function in a child, and wait for it.

    Args:
        zygote: whose child.
        function: it, its arguments and keyword arguments.
        data: what it reads.
        timeout: seconds, None for ever.
    """
    policy, plan = zygote._policy, zygote.plan
    work = _pack(function)
    begun = time.monotonic()
    with ExitStack() as stack:
        ends, theirs = open_streams({0: None, 1: None, 2: None}, data)
        result, outcome = _values.new_file("result"), _values.new_file("outcome")
        stack.callback(result.close)
        stack.callback(outcome.close)
        born = _Birth(zygote)
        stack.callback(born.close)
        try:
            zygote.warm_up()
            begun = time.monotonic()
            if plan.limits.group is not None:
                born.group = Group(plan.limits.group, plan.limits.settings)
                stack.callback(born.group.close)
            fds = {**ends.descriptors, OUTCOME: outcome.number}
            child, setup = zygote._order(zygote.options, work, result, fds, born)
        except (OSError, ZygoteError) as error:
            return failed(plan, str(error), time.monotonic() - begun)
        stack.callback(child.close)
        stack.callback(_end, child)
        for each in theirs:
            each.close()
        watched = Watched(policy, plan, born.pid, born.group)
        reason = watched.watch(child, ends, begun, timeout)
        status = child._settle(born.status(child))
        wall = time.monotonic() - begun
        # The function had no way to this file.
        if fault := _setup_error(result, setup):
            return failed(plan, fault, wall)
        return _judge(policy, watched.verdict(reason, status, True, wall, ends), outcome)


def _pack(function: Function) -> tuple[Any, ...]:
    """Make the work of a child: its function stays closed until it is confined."""
    by_value = getattr(function[0], "__module__", "") == "__main__"
    if by_value and _values.find_cloudpickle() is None:
        raise TypeError(
            f"{function[0]!r} is of the main module, which is not in the sandbox: such functions "
            "travel by cloudpickle, which is not installed"
        )
    pickled, buffers = _values.encode(function, by_value=by_value)
    return _inside.call, (OUTCOME, pickled, *buffers), {}


class _Birth:
    """What is known of a child from its birth on."""

    def __init__(self, zygote: InnerZygote) -> None:
        self._zygote = zygote
        self._reports: _Reports | None = None
        self.group: Group | None = None
        self.pid = -1  # for us
        self._inner = -1  # in the sandbox

    def __call__(self, child: Child) -> None:
        """Take it up, before it is told its work."""
        self.close()  # of one that has ended without work
        self._reports = self._zygote.reports
        self._inner = child.pid
        if self._reports is not None:
            self._reports.expect(child.pid)
        with open(f"/proc/self/fdinfo/{child.pidfd}") as file:
            fields = dict(line.split(":", 1) for line in file)
        self.pid = int(fields["Pid"])
        if self.group is not None and self.pid != _REAPED:
            self.group.add(self.pid)

    def status(self, child: Child) -> ExitStatus:
        """Find out how it ended. It was killed with the first process if that does not tell."""
        record = None if self._reports is None else self._reports.of(child.pid)
        if record is None or record.status is None:
            return ExitStatus(os.CLD_KILLED, SIGKILL)
        return record.status

    def close(self) -> None:
        """Let go of what is told of it."""
        if self._reports is not None:
            self._reports.forget(self._inner)


def _end(child: Child) -> None:
    """End what still runs: there was an exception."""
    if child._status is None:
        child.kill()


def _setup_error(result: Descriptor, setup: Program) -> str:
    """Say what has failed before the function was called. It is from inside, too: so it is data."""
    text = os.pread(result.number, _MOST_WORDS, 0)
    if not text:
        return ""
    with suppress(ValueError, LookupError, RecursionError):
        match json.loads(text):
            case [int(step), int(error)] if error > -4096:  # MAX_ERRNO
                return str(setup_error(setup, step, error))
            case str(words):
                return words
    return "the interpreter in the sandbox has told nothing that makes sense"


def _judge(policy: Policy, verdict: Verdict, outcome: Descriptor) -> Verdict:
    """Add what the function has left, which is anybody's."""
    if verdict.reason != "exited":
        return verdict
    size = os.fstat(outcome.number).st_size
    if size > policy.output_size:
        text = f"what it returns takes {size} bytes, and output_size is {policy.output_size}"
        return verdict.replace(reason="output", error=text)
    data = bytearray(size)
    read = os.preadv(outcome.number, [data], 0)
    try:
        content = _data.decode(data[:read] if read < size else data)
    except _data.DataError:
        content = None
    match content:
        case {"value": value}:
            return verdict.replace(value=value)
        case {"error": str(text)}:
            return verdict.replace(reason="raised", error=text)
    return verdict.replace(error="it has ended without returning")
