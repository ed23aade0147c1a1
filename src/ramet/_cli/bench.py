"""``ramet bench``: how long starts take here, ours and those of others, in turns."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from ramet import _native
from ramet._cli._errors import CommandError
from ramet._cli._progress import Progress
from ramet._cli._words import Option, Page, put, read_options
from ramet._clone import clone
from ramet._flags import CloneFlags
from ramet._popen import run
from ramet._spawn import spawn
from ramet.sandbox._policy import parse_size
from ramet.sandbox._presets import system_files
from ramet.sandbox._root import Bind, Symlink
from ramet.sandbox._sandbox import Sandbox

_DESCRIPTION = """\
Measure how long it takes here to start a child and wait for it, by ramet and by others, which take
turns. benchmarks/ in the sources has the long form."""
PAGE = Page(
    "ramet bench [options]",
    _DESCRIPTION,
    {
        "options": (
            Option("--turns", "N", put("turns", int), "how many of each; 50 by default"),
            Option(
                "--resident",
                "SIZE",
                put("resident", parse_size),
                "memory that this process has, such as 1G: what copies it takes the longer",
            ),
            Option("--json", "", put("json"), "write it as JSON, with all values"),
        ),
    },
)
_SHARED = CloneFlags.VM | CloneFlags.VFORK
_MILLISECONDS = 1000


class Candidate(NamedTuple):
    """A way to start a child.

    Attributes:
        name: what it is called.
        start: starts one, and waits for it.
    """

    name: str
    start: Callable[[], object]


def _clone() -> None:
    with clone(_native.nothing, None, _SHARED):
        pass


def _fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _posix_spawn(program: str) -> Callable[[], object]:
    return lambda: os.waitpid(os.posix_spawn(program, [program], os.environ), 0)


def _bwrap(program: str) -> Iterator[Candidate]:
    """Bwrap with the same namespaces and files, if it is here; but without a filter."""
    if (path := shutil.which("bwrap")) is None:
        return
    args = [path, "--unshare-all", "--clearenv", "--proc", "/proc", "--dev", "/dev"]
    args += ["--tmpfs", "/tmp"]  # noqa: S108 - that of the sandbox
    for place, entry in system_files().items():
        if isinstance(entry, Symlink):
            args += ["--symlink", entry.target, place]
        elif isinstance(entry, Bind):
            args += ["--ro-bind", os.fspath(entry.source), place]
    args += [program]
    if subprocess.run(args, capture_output=True, check=False).returncode == 0:
        yield Candidate("bwrap, without seccomp", lambda: run(args))


def _groups() -> dict[str, list[Candidate]]:
    """Find the candidates; the first of each group is ours."""
    program = shutil.which("true")
    if program is None:
        raise CommandError("there is no program 'true'")
    groups = {
        "start a function of C": [
            Candidate("ramet.clone", _clone),
            Candidate("os.fork", _fork),
        ],
        f"start {program}": [
            Candidate("ramet.spawn", lambda: spawn([program]).wait()),
            Candidate("ramet.run", lambda: run([program])),
            Candidate("os.posix_spawn", _posix_spawn(program)),
            Candidate("subprocess.run", lambda: subprocess.run([program], check=True)),
        ],
    }
    sandbox = Sandbox(system=True)
    with suppress(RuntimeError, OSError):  # no sandbox can be had: ramet doctor says why
        if sandbox.run([program]).ok:
            groups[f"start {program} in a sandbox"] = [
                Candidate("ramet.Sandbox", lambda: sandbox.run([program])),
                *_bwrap(program),
            ]
    return groups


def main(words: Sequence[str]) -> int:
    """Measure.

    Args:
        words: the command line behind ``ramet bench``.

    Returns:
        The exit status.
    """
    options = read_options(PAGE, words, {"json": False, "turns": 50, "resident": 0})
    if options["turns"] < 1:
        raise CommandError("--turns must be at least 1")
    memory = b"\1" * options["resident"]
    groups = _groups()
    values = _measure([each for group in groups.values() for each in group], options["turns"])
    del memory
    sys.stdout.write(_as_json(values) if options["json"] else _as_table(groups, values))
    return 0


def _measure(candidates: Sequence[Candidate], turns: int) -> dict[str, list[float]]:
    """Take turns; seconds of each start."""
    values: dict[str, list[float]] = {each.name: [] for each in candidates}
    with Progress(turns + 1) as progress:
        for turn in range(turns + 1):
            for each in candidates:
                begun = time.perf_counter()
                each.start()
                duration = time.perf_counter() - begun
                if turn:  # the first is to warm up
                    values[each.name].append(duration)
            progress.step()
    return values


def _as_json(values: dict[str, list[float]]) -> str:
    import json  # noqa: PLC0415 - here only

    return f"{json.dumps(values)}\n"


def _as_table(groups: dict[str, list[Candidate]], values: dict[str, list[float]]) -> str:
    lines = [f"{'':32}{'median':>11}{'least':>11}"]
    for title, group in groups.items():
        lines += ["", title]
        ours = statistics.median(values[group[0].name])
        for each in group:
            median, least = statistics.median(values[each.name]), min(values[each.name])
            times = "" if each is group[0] else f"   {median / ours:.1f} x"
            lines.append(f"  {each.name:30}{_ms(median)}{_ms(least)}{times}")
    return "\n".join([*lines, ""])


def _ms(seconds: float) -> str:
    return f"{seconds * _MILLISECONDS:8.2f} ms"
