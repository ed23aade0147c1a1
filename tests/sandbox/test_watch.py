"""Watching a child: its pipes, and what it is killed for."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

import ramet
from ramet._native import Descriptor
from ramet.sandbox._watch import Input, Output, Watch
from tests.waiting import Background, blocks, until

PIPE = 1 << 16  # bytes that a pipe has room for


class Watched(NamedTuple):
    child: ramet.Child
    outputs: Mapping[int, Output]
    kills: list[str]
    watch: Watch


@contextmanager
def watched(script: str, data: bytes | None = None, **options: Any) -> Iterator[Watched]:
    """A shell script, with pipes for its streams."""
    with ExitStack() as stack:
        pipes = {number: Descriptor.pipe() for number in (1, 2)}
        ours = {number: reader for number, (reader, _) in pipes.items()}
        theirs = {number: writer for number, (_, writer) in pipes.items()}
        source = None
        if data is not None:
            theirs[0], writer = Descriptor.pipe()
            source = Input(writer, data)
            stack.callback(writer.close)
        for each in (*ours.values(), *theirs.values()):
            stack.callback(each.close)
        fds = {number: each.number for number, each in theirs.items()}
        child = stack.enter_context(ramet.spawn(["sh", "-c", script], fds=fds))
        stack.callback(child.kill)
        for each in theirs.values():
            each.close()
        outputs = {number: Output(reader) for number, reader in ours.items()}
        kills: list[str] = []
        settings: dict[str, Any] = {"deadline": None, "room": 1 << 30, "examine": None}
        settings |= {"on_kill": lambda: kills.append("killed"), **options}
        yield Watched(child, outputs, kills, Watch(child, outputs.values(), source, **settings))


def data_of(outputs: Mapping[int, Output]) -> tuple[bytes, bytes]:
    return bytes(outputs[1].data), bytes(outputs[2].data)


# --- what goes in and out -------------------------------------------------------------------------


def test_outputs() -> None:
    with watched("echo out; echo err >&2; exit 3") as (child, outputs, kills, watch):
        assert watch.run() is None
        assert data_of(outputs) == (b"out\n", b"err\n")
        assert kills == []
        assert child.wait().code == 3


@pytest.mark.parametrize("size", [0, 1, PIPE, 5 * PIPE + 1])
def test_input(size: int) -> None:
    """More than a pipe holds, while as much comes back."""
    data = bytes(range(251)) * (size // 251) + bytes(size % 251)
    with watched("cat", data) as (_, outputs, _, watch):
        assert watch.run() is None
        assert data_of(outputs) == (data, b"")


def test_input_that_nobody_reads() -> None:
    with watched("exec <&-; echo on", bytes(5 * PIPE)) as (child, outputs, _, watch):
        assert watch.run() is None
        assert data_of(outputs) == (b"on\n", b"")
        assert child.wait().code == 0


def test_outputs_that_are_closed_early() -> None:
    """It is waited for all the same."""
    with watched("exec >&- 2>&-; sleep 0.1; exit 3") as (child, outputs, _, watch):
        assert watch.run() is None
        assert child.poll() == ramet.ExitStatus(os.CLD_EXITED, 3)
        assert data_of(outputs) == (b"", b"")


def test_outputs_that_others_have_open() -> None:
    """The end of the child is the end, even if more could be written."""
    reader, writer = Descriptor.pipe()
    with ramet.spawn(["echo", "out"], fds={1: writer.number}) as child:
        output = Output(reader)
        settings: dict[str, Any] = {"deadline": None, "room": 9, "examine": None, "on_kill": int}
        assert Watch(child, [output], None, **settings).run() is None
        assert output.data == b"out\n"
    reader.close()
    writer.close()


def test_looks_that_take_long() -> None:
    """They take no more than half of our time."""
    looks: list[float] = []

    def examine() -> None:
        looks.append(time.monotonic())
        time.sleep(0.1)

    with watched("sleep 0.5", examine=examine) as (_, _, _, watch):
        watch.run()
    assert all(later - earlier >= 0.2 for earlier, later in pairwise(looks))


# --- what it is killed for ------------------------------------------------------------------------


def test_room() -> None:
    """What fits exactly is not too much."""
    with watched("printf 12345", room=5) as (_, outputs, _, watch):
        assert watch.run() is None
        assert data_of(outputs)[0] == b"12345"
        assert not outputs[1].truncated
    with watched("printf 123456; sleep 1000", room=5) as (child, outputs, kills, watch):
        assert watch.run() == "output"
        assert data_of(outputs)[0] == b"12345"
        assert outputs[1].truncated
        assert not outputs[2].truncated
        assert kills == ["killed"]
        assert child.wait().signal == signal.SIGKILL


def test_room_is_for_both_outputs() -> None:
    with watched("printf 123; printf 456 >&2; sleep 1000", room=5) as (_, outputs, _, watch):
        assert watch.run() == "output"
        assert sum(len(each) for each in data_of(outputs)) == 5
        assert outputs[1].truncated != outputs[2].truncated


def test_what_was_too_much_at_the_end() -> None:
    """It is not kept either if the child has ended by then."""
    with watched("printf 123456", room=5) as (child, outputs, _, watch):
        os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
        watch.run()
        assert data_of(outputs)[0] == b"12345"
        assert outputs[1].truncated


def test_a_flood() -> None:
    with watched("yes", room=10 * PIPE) as (_, outputs, _, watch):
        assert watch.run() == "output"
        assert data_of(outputs)[0] == b"y\n" * (5 * PIPE)


def test_deadline() -> None:
    with watched("echo on; sleep 1000", deadline=time.monotonic() + 0.1) as watch:
        select.select([watch.outputs[1].reader.number], [], [])
        assert watch.watch.run() == "timeout"
        assert data_of(watch.outputs)[0] == b"on\n"
        assert watch.kills == ["killed"]
        assert watch.child.wait().signal == signal.SIGKILL
    with watched("sleep 1000", deadline=time.monotonic() - 1) as watch:
        assert watch.watch.run() == "timeout"


def test_a_deadline_that_is_far_away() -> None:
    for seconds in (1e6, 1e10):
        with watched("exit 3", deadline=time.monotonic() + seconds) as (child, _, _, watch):
            assert watch.run() is None
            assert child.wait().code == 3


def test_examine() -> None:
    """It is asked again and again, and what it says is the reason."""
    asked = 0

    def examine() -> str | None:
        nonlocal asked
        asked += 1
        return "memory" if asked == 3 else None

    with watched("sleep 1000", examine=examine) as (child, _, kills, watch):
        assert watch.run() == "memory"
        assert asked == 3
        assert kills == ["killed"]
        assert child.wait().signal == signal.SIGKILL


def test_examine_while_much_is_written() -> None:
    """Whoever writes all the time is not looked at less."""
    found: list[Output] = []

    def examine() -> str | None:
        return "cpu" if any(len(each.data) > PIPE for each in found) else None

    with watched("yes", examine=examine) as (_, outputs, _, watch):
        found += outputs.values()
        assert watch.run() == "cpu"


def test_cancelled() -> None:
    gate = Descriptor.gate()
    with watched("sleep 1000", cancel=gate.number) as (child, _, kills, watch):
        running = Background(watch.run)
        running.until_blocked("poll")
        assert kills == []
        os.eventfd_write(gate.number, 1)
        assert running.result() == "cancelled"
        assert kills == ["killed"]
        assert child.wait().signal == signal.SIGKILL
    gate.close()


@pytest.mark.parametrize("late", [{"deadline": 0.0}, {"examine": lambda: "cpu"}])
def test_the_first_reason_counts(late: dict[str, Any]) -> None:
    """What comes between the kill and the end changes nothing, and it is killed once."""
    gate = Descriptor.gate()
    os.eventfd_write(gate.number, 1)
    with watched("yes", cancel=gate.number, room=5, **late) as (_, _, kills, watch):
        assert watch.run() in {"cancelled", "output"}
        assert kills == ["killed"]
    gate.close()


def test_it_sleeps_while_there_is_nothing_to_do() -> None:
    with watched("sleep 1000") as (child, _, _, watch):
        running = Background(watch.run)
        running.until_blocked("poll")
        tid = running._thread.native_id
        assert tid is not None
        switches = _switches(tid)
        time.sleep(0.1)
        assert blocks(tid, "poll")
        assert _switches(tid) == switches
        child.kill()
        assert running.result() is None


def _switches(tid: int) -> int:
    """How often a thread has gone to sleep."""
    with open(f"/proc/self/task/{tid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("voluntary"))


def test_reading_what_is_not_there_yet() -> None:
    reader, writer = Descriptor.pipe()
    output = Output(reader)
    assert output.read(10)
    assert output.data == b""
    os.write(writer.number, b"abc")
    assert output.read(2)
    assert output.data == b"ab"
    assert (output.added, output.truncated) == (2, True)
    writer.close()
    assert not output.read(10)
    reader.close()


def test_writing_what_there_is_no_room_for() -> None:
    reader, writer = Descriptor.pipe()
    source = Input(writer, bytes(2 * PIPE))
    until(lambda: not _grows(source))
    assert source.write()
    assert len(os.read(reader.number, 4 * PIPE)) == PIPE
    reader.close()
    assert not source.write()
    writer.close()


def _grows(source: Input) -> bool:
    before = len(source._rest)
    source.write()
    return len(source._rest) < before
