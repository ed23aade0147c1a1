"""What the benchmarks share: a parent of some size, and candidates that take turns in it."""

from __future__ import annotations

import argparse
import mmap
import subprocess
import sys
from collections.abc import Callable, Mapping

import pyperf

PARENTS = {"0 GiB": 0, "2 GiB": 2 << 30}
Values = dict[str, list[float]]


def grow(resident: int) -> mmap.mmap:
    """Take up memory, in ordinary pages, as those of a heap that has grown over time."""
    memory = mmap.mmap(-1, resident or mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for offset in range(0, resident, mmap.PAGESIZE):
        memory[offset] = 1
    return memory


def take_turns(
    loops: Mapping[str, Callable[[int], object]], children: Mapping[str, int], turns: int
) -> Values:
    """Let candidates start their number of children in turn; seconds for each child."""
    values: Values = {name: [] for name in loops}
    for turn in range(turns + 1):
        for name, loop in loops.items():
            start = pyperf.perf_counter()
            loop(children[name])
            duration = pyperf.perf_counter() - start
            if turn:  # the first is to warm up
                values[name].append(duration / children[name])
    return values


def benchmark(name: str, seconds: list[float]) -> pyperf.Benchmark:
    """Hand the values of one candidate to pyperf."""
    return pyperf.Benchmark([pyperf.Run(seconds, metadata={"name": name}, collect_metadata=False)])


def repeat(start: Callable[[], object]) -> Callable[[int], None]:
    """Make a loop of what starts one child."""

    def loop(n: int) -> None:
        for _ in range(n):
            start()

    return loop


def in_each_parent(
    script: str,
    description: str,
    turns: int,
    measure: Callable[[int, str, int], None],
    parents: Mapping[str, int] = PARENTS,
) -> None:
    """Measure each parent in a process of its own: the script is run anew for each.

    Args:
        script: the file of the benchmark, which calls this.
        description: of which the first line is shown as help.
        turns: how many there are, if the command line does not say otherwise.
        measure: measures for one parent, which is the process; given its resident memory in bytes,
            its name, and the turns.
        parents: resident memory by names.
    """
    parser = argparse.ArgumentParser(description=description.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--turns", type=int, default=turns, help="turns for each candidate")
    parser.add_argument("--parent", choices=parents, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.parent:
        measure(parents[options.parent], options.parent, options.turns)
        return
    for name in parents:
        command = [sys.executable, script, "--parent", name, "--turns", str(options.turns)]
        subprocess.run(command, check=True)
