"""Run: a program in a sandbox, from its start to the verdict."""

from __future__ import annotations

import math
import os
import resource
import stat
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from signal import SIGKILL, SIGXCPU
from typing import NamedTuple

from ramet import _native
from ramet._child import Child, ExitStatus
from ramet._native import Descriptor
from ramet._program import Code, begin, program_flags
from ramet._spawn import File, check_args
from ramet._steps import Path
from ramet.sandbox import _tree
from ramet.sandbox._cgroup import Group
from ramet.sandbox._plan import Plan, outside_ids
from ramet.sandbox._policy import Policy
from ramet.sandbox._verdict import Reason, Verdict, planned
from ramet.sandbox._watch import Input, Output, Watch

# struct ramet_init_record, src/native/init.h: kind, value, pid, and a struct rusage
_RECORD = struct.Struct("=3q144s")
_FAILED, _REAPED = 2, 3
_MICROSECONDS = 1e6
_LAST_LOOK = 0.1  # seconds for which what is to be killed goes on
# How much of its processor time must have been used by what RLIMIT_CPU ends. The kernel counts
# ticks for it, and for rusage what was run (store_samples, kernel/time/posix-cpu-timers.c;
# cputime_adjust, kernel/sched/cputime.c): so the signal may come early.
_SHARES: dict[int | None, float] = {SIGXCPU: 0.5, SIGKILL: 1}


class Record(NamedTuple):
    """What the first process has told of the program, or of another of its children.

    Attributes:
        error: the errno for which it could not be started, or 0.
        status: how it ended, None if it could not be started.
    """

    error: int
    status: ExitStatus | None


class Report:
    """A pipe in which the first process tells what became of the program, and of others."""

    def __init__(self, reader: Descriptor) -> None:
        self.reader = reader
        self.expected = set[int]()  # pids there
        self.others: dict[int, Record] = {}
        self._data = bytearray(_RECORD.size)
        self._program: Record | None = None
        os.set_blocking(reader.number, False)

    def read(self) -> Record | None:
        """Give what was told of the program, None if it was killed before; again, the same.

        All that was told of the others that are expected is in `others` then.
        """
        # Into what we have: so nothing is lost if this is interrupted, or done by two threads.
        self._note()
        more = True
        while more:
            try:  # a fork of ours has the other end as well
                more = os.readv(self.reader.number, [self._data]) > 0
            except BlockingIOError:
                more = False
            self._note()
        return self._program

    def _note(self) -> None:
        """Note what was read last."""
        kind, value, pid, rusage = _RECORD.unpack(self._data)
        if kind == _REAPED:
            if pid in self.expected:
                self.others[pid] = _record(kind, value, rusage)
        elif kind and self._program is None:  # what could not be started ends as well, later
            self._program = _record(kind, value, rusage)
        self._data[:] = bytes(_RECORD.size)


def _record(kind: int, value: int, raw: bytes) -> Record:
    if kind == _FAILED:
        return Record(value, None)
    if os.WIFEXITED(value):
        return Record(0, ExitStatus(os.CLD_EXITED, os.WEXITSTATUS(value), raw))
    code = os.CLD_DUMPED if os.WCOREDUMP(value) else os.CLD_KILLED
    return Record(0, ExitStatus(code, os.WTERMSIG(value), raw))


class Started(NamedTuple):
    """A program that was started in a sandbox.

    Attributes:
        child: the first process.
        report: what it tells of the program.
        group: its cgroup.
    """

    child: Child
    report: Report
    group: Group | None


def start(
    policy: Policy, plan: Plan, args: Sequence[Path], descriptors: Mapping[int, int]
) -> Started:
    """Start a program in a sandbox.

    Args:
        policy: the policy.
        plan: what it was compiled to, for these descriptors.
        args: the program and its arguments.
        descriptors: ours, by the numbers in the sandbox.

    Raises:
        ChildError: a step failed.
        OSError: the kernel refuses the child, or its ids, or its cgroup.
    """
    maps = outside_ids(policy)
    reader, teller = Descriptor.pipe()
    report = Report(reader)
    parent = Descriptor.this_process()
    values = {f"fd{number}": ours for number, ours in descriptors.items()}
    values |= {"report": teller.number, "parent": parent.number}
    if maps.by_parent:
        values["gate"] = maps.number
    argv = _native.strings([*plan.init_args, *args])
    values["argv"] = _native.bytes_address(argv)
    group = None if plan.limits.group is None else Group(plan.limits.group, plan.limits.settings)
    try:
        # Not one that suspends us: what interrupts that would come before anybody has the child.
        flags = program_flags(plan.flags, suspends=False)
        cgroup = None if group is None else group.descriptor.number
        code = plan.program._filled(values)
        child = begin(Code(code.structures, (code, argv)), flags, cgroup=cgroup)
        child._quiet = True
        if maps.by_parent:
            maps.write(child)
        plan.program._finish(child, None, suspended=False)
        child._kill = child._quiet = True
    except BaseException:
        if group is not None:
            group.close()
        raise
    return Started(child, report, group)


def number_of(file: File) -> int:
    """Give the number of a descriptor that a program is to have.

    Raises:
        ValueError: it is a directory: that would lead out of the sandbox.
        OSError: it is none.
    """
    number = file if isinstance(file, int) else file.fileno()
    if stat.S_ISDIR(os.fstat(number).st_mode):
        raise ValueError(f"descriptor {number} is a directory, which leads out of the sandbox")
    return number


class Ends(NamedTuple):
    """The standard streams of a program: its ends, and ours."""

    descriptors: dict[int, int]
    source: Input | None
    outputs: dict[int, Output]


def open_streams(given: Mapping[int, File | None], data: bytes) -> tuple[Ends, list[Descriptor]]:
    """Make pipes for the streams that were not given.

    Args:
        given: descriptors by the numbers in the sandbox; None makes a pipe for 0, 1 and 2.
        data: what is read from 0.

    Returns:
        All of it, and what is to be closed once the program has been started.
    """
    descriptors: dict[int, int] = {}
    outputs: dict[int, Output] = {}
    source = None
    theirs = []
    for number, file in given.items():
        if file is not None:
            descriptors[number] = number_of(file)
            continue
        reader, writer = Descriptor.pipe()
        if number == 0:
            descriptors[0] = reader.number
            theirs.append(reader)
            source = Input(writer, data) if data else None
        else:
            descriptors[number] = writer.number
            theirs.append(writer)
            outputs[number] = Output(reader)
    return Ends(descriptors, source, outputs), theirs


def run(
    policy: Policy,
    plan_for: Callable[[tuple[int, ...]], Plan],
    args: Sequence[Path],
    *,
    data: bytes = b"",
    streams: Mapping[int, File | None],
    timeout: float | None,
    cancel: int | None = None,
) -> Verdict:
    """Run a program in a sandbox, and wait for it.

    Args:
        policy: the policy.
        plan_for: gives the plan for descriptors beside 0, 1 and 2.
        args: the program and its arguments.
        data: what it reads, where its standard input was not given.
        streams: as of `open_streams`.
        timeout: seconds, None for ever.
        cancel: as of `Watch`.
    """
    args = check_args(args)
    plan = plan_for(tuple(number for number in streams if number > 2))
    with ExitStack() as stack:
        ends, theirs = open_streams(streams, data)
        begun = time.monotonic()
        try:
            started = start(policy, plan, args, ends.descriptors)
        except OSError as error:
            return failed(plan, str(error), time.monotonic() - begun)
        if started.group is not None:
            stack.callback(started.group.close)
        child = started.child
        stack.callback(child.close)
        stack.callback(_end, started)
        for each in theirs:
            each.close()
        watched = Watched(policy, plan, child.pid, started.group)
        reason = watched.watch(child, ends, begun, timeout, cancel)
        status = _wait(child)
        wall = time.monotonic() - begun
        record = started.report.read()
        if record is not None and record.status is None:
            text = f"execve({os.fsdecode(args[0])!r}, ...) failed: {os.strerror(record.error)}"
            return failed(plan, text, wall, record.error)
        if record is None and status.signal is None:
            return failed(plan, f"the first process {status._words()} and told nothing", wall)
        told = None if record is None else record.status
        return watched.verdict(reason, told or status, told is not None, wall, ends)


def _wait(child: Child) -> ExitStatus:
    """Wait for the first process. It was killed if nobody tells how it ended."""
    try:
        return child.wait()
    except ChildProcessError:  # SIGCHLD is ignored, or another wait was quicker
        return ExitStatus(os.CLD_KILLED, SIGKILL)


def failed(plan: Plan, error: str, wall: float, errno: int | None = None) -> Verdict:
    """Make the verdict for what was not started."""
    return Verdict(
        reason="start_failed",
        error=error,
        errno=errno,
        wall_time=wall,
        receipt=planned(plan.receipt),
    )


def _end(started: Started) -> None:
    """End what still runs: there was an exception."""
    if started.child._status is None:
        started.child.kill()
        _wait(started.child)


class Watched:
    """What is known of a sandbox while it runs."""

    def __init__(self, policy: Policy, plan: Plan, pid: int, group: Group | None) -> None:
        self._policy = policy
        self._plan = plan
        self._pid = pid
        self._group = group
        self._found = _tree.Sample()
        self._past = _tree.Past()

    def watch(
        self,
        child: Child,
        ends: Ends,
        begun: float,
        timeout: float | None,
        cancel: int | None = None,
    ) -> str | None:
        """Wait for its end. Returns why it was killed, if it was."""
        return Watch(
            child,
            ends.outputs.values(),
            ends.source,
            deadline=None if timeout is None else begun + timeout,
            room=self._policy.output_size,
            examine=self._examine if self._plan.limits.sampled else None,
            on_kill=self._look,
            cancel=cancel,
        ).run()

    def _examine(self) -> str | None:
        """Say which limit was passed, if one was."""
        policy = self._policy
        if self._group is not None:
            used = (self._group.number("cpu.stat", "usage_usec") or 0) / _MICROSECONDS
        else:
            found = self._sample()
            used = found.user_time + found.system_time
            if "memory" in self._plan.limits.sampled and found.memory > (policy.memory or 0):
                return "memory"
        if policy.cpu_time is not None and used > policy.cpu_time:
            return "cpu"
        return None

    def _look(self) -> None:
        """Find out what is not known any more once it was killed."""
        if self._group is None and _tree.is_visible():
            self._sample(_LAST_LOOK)

    def _sample(self, patience: float | None = None) -> _tree.Sample:
        """Look at the processes; what was found before is not less."""
        found = _tree.sample(self._pid, self._past, patience)
        before = self._found
        self._found = _tree.Sample(
            max(before.memory, found.memory),
            max(before.largest, found.largest),
            max(before.user_time, found.user_time),
            max(before.system_time, found.system_time),
        )
        return found

    def verdict(
        self,
        reason: str | None,
        status: ExitStatus,
        is_program: bool,
        wall: float,
        ends: Ends,
    ) -> Verdict:
        """Put together what became of it.

        Args:
            reason: why it was killed, if it was.
            status: how it ended.
            is_program: that is about the program, and not about the first process.
            wall: seconds that it took.
            ends: its streams.
        """
        usage = status.rusage
        user, system = self._found.user_time, self._found.system_time
        if usage is not None:
            user, system = max(user, usage.ru_utime), max(system, usage.ru_stime)
        peak, origin = self._peak(usage if is_program else None)
        if self._group is not None:
            times = [self._group.number("cpu.stat", f"{kind}_usec") for kind in ("user", "system")]
            if None not in times:
                user, system = (time_ / _MICROSECONDS for time_ in times if time_ is not None)
        empty = (b"", False)
        kept = {n: (bytes(out.data), out.truncated) for n, out in ends.outputs.items()}
        (out, out_cut), (err, err_cut) = kept.get(1, empty), kept.get(2, empty)
        return Verdict(
            reason=self._reason(reason, status, user + system),
            exit_code=status.code if reason is None else None,
            signal=status.signal if reason is None else int(SIGKILL),
            wall_time=wall,
            user_time=user,
            system_time=system,
            peak_memory=peak,
            peak_memory_source=origin,
            stdout=out,
            stderr=err,
            stdout_truncated=out_cut,
            stderr_truncated=err_cut,
            receipt=self._plan.receipt,
        )

    def _reason(self, killed: str | None, status: ExitStatus, used: float) -> Reason:
        if killed is not None:
            return killed  # type: ignore[return-value] # watch and examine say these
        if self._group is not None and self._group.number("memory.events", "oom_kill"):
            return "memory"
        share = _SHARES.get(status.signal)
        if share is not None and used >= share * (self._policy.cpu_time or math.inf):
            return "cpu"
        return "exited" if status.signal is None else "signalled"

    def _peak(self, usage: resource.struct_rusage | None) -> tuple[int | None, str]:
        if self._group is not None:
            peak = self._group.number("memory.peak")
            if peak is not None:
                return peak, "all of the sandbox: memory.peak of its cgroup"
        if usage is not None:
            return (
                usage.ru_maxrss << 10,
                "the largest of the program and what it waited for: ru_maxrss",
            )
        if self._found.largest:
            return self._found.largest, "the largest process: VmHWM, before it was killed"
        return None, ""
