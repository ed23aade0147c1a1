"""How long it takes to start a child that does nothing, and to wait for it.

Compares ramet.clone (CLONE_VM|CLONE_VFORK of a C function that returns at once) with the same loop
in C, with os.fork and with multiprocessing, in a process of next to no memory and in one of 2 GiB.
Within a process the candidates take turns, so that whatever else the machine does falls on all of
them alike; the ratios of the medians are what counts. Writes a table, and with ``--plot`` and
``--json`` a picture and pyperf's file of all values.

    python benchmarks/clone_latency.py --plot docs/clone_latency.svg
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyperf
from turns import PARENTS, Values, benchmark, grow, take_turns

import ramet
from ramet import CloneFlags

# The name of a candidate, and how many children it starts a turn.
BARE = "C: clone, waitpid"
SAME = "C: with the calls of ramet"
RAMET = "ramet.clone"
FORK = "os.fork"
MP_FORK = "multiprocessing fork"
MP_SERVER = "multiprocessing forkserver"
CHILDREN = {BARE: 200, SAME: 200, RAMET: 200, FORK: 5, MP_FORK: 2, MP_SERVER: 2}


def nothing() -> None:
    """Do nothing, in a child of multiprocessing."""


def candidates(library: ctypes.CDLL) -> dict[str, Callable[[int], None]]:
    """Make the loops to be compared."""
    flags = CloneFlags.VM | CloneFlags.VFORK
    # An address, as what is measured is the start, not the conversion of ctypes objects.
    address = ctypes.cast(library.returns_zero, ctypes.c_void_p).value

    def c_loop(name: str) -> Callable[[int], None]:
        def loop(n: int) -> None:
            assert library[name](n) == 0

        return loop

    def ramet_clone(n: int) -> None:
        for _ in range(n):
            ramet.clone(address, None, flags).wait()  # type: ignore[union-attr]

    def os_fork(n: int) -> None:
        for _ in range(n):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)

    def processes(method: str) -> Callable[[int], None]:
        context = multiprocessing.get_context(method)

        def loop(n: int) -> None:
            for _ in range(n):
                process = context.Process(target=nothing)  # type: ignore[attr-defined]
                process.start()
                process.join()

        return loop

    return {
        BARE: c_loop("bare_loop"),
        SAME: c_loop("same_calls_loop"),
        RAMET: ramet_clone,
        FORK: os_fork,
        MP_FORK: processes("fork"),
        MP_SERVER: processes("forkserver"),
    }


def measure(library: Path, resident: int, turns: int) -> Values:
    """Let the candidates take turns in this process; seconds for each child."""
    memory = grow(resident)
    values = take_turns(candidates(ctypes.CDLL(str(library))), CHILDREN, turns)
    memory.close()
    return values


def build(directory: Path) -> Path:
    """Compile the loops in C."""
    library = directory / "clone_loop.so"
    source = Path(__file__).with_name("clone_loop.c")
    compiler = os.environ.get("CC", "cc")
    options = ["-O2", "-Wall", "-shared", "-fPIC", f"-I{ramet.get_include()}"]
    trampoline = Path(ramet.get_library_dir()) / "libramet.a"
    subprocess.run([compiler, *options, "-o", library, source, trampoline], check=True)
    return library


def benchmarks(values: Values, parent: str) -> dict[str, pyperf.Benchmark]:
    """Hand the values of one parent to pyperf."""
    return {name: benchmark(f"{name}, {parent}", times) for name, times in values.items()}


def report(results: dict[str, dict[str, pyperf.Benchmark]]) -> None:
    """Print medians, deviations and ratios."""
    for parent, by_name in results.items():
        base = by_name[RAMET].median()
        print(f"\nParent with {parent} resident{'median':>22}{'MAD':>10}{'of ramet.clone':>18}")
        for name, of in by_name.items():
            median, deviation = of.median(), of.median_abs_dev()
            print(
                f"  {name:32}{median * 1e6:14.1f} us{deviation * 1e6:8.1f}{median / base:15.2f} x"
            )
        for peer in (SAME, BARE):
            print(f"  ramet.clone / {peer}: {base / by_name[peer].median():.2f}")
        print(f"  os.fork / ramet.clone: {by_name[FORK].median() / base:.0f}")


def plot(results: dict[str, dict[str, pyperf.Benchmark]], path: Path) -> None:
    """Draw the medians, on a logarithmic axis."""
    import matplotlib as mpl  # noqa: PLC0415 - only needed here, and slow to import

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "ramet"
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    names = list(CHILDREN)[::-1]
    for index, (parent, by_name) in enumerate(results.items()):
        places = [place - 0.2 + 0.4 * index for place in range(len(names))]
        times = [by_name[name].median() * 1e6 for name in names]
        bars = axes.barh(places, times, height=0.38, label=f"{parent} resident")
        axes.bar_label(bars, [f"{time:,.0f}" for time in times], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel("microseconds to start a child that does nothing and wait for it (median)")
    axes.legend(loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Measure in a process of its own for each size of parent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=30, help="turns for each candidate")
    parser.add_argument("--plot", type=Path, help="where to write the picture")
    parser.add_argument("--json", type=Path, help="where to write all values, for pyperf")
    parser.add_argument("--worker", nargs=2, metavar=("LIBRARY", "BYTES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        library, resident = options.worker
        print(json.dumps(measure(Path(library), int(resident), options.turns)))
        return

    results = {}
    with tempfile.TemporaryDirectory() as directory:
        built = build(Path(directory))
        for parent, resident in PARENTS.items():
            command = [sys.executable, __file__, "--turns", str(options.turns)]
            command += ["--worker", str(built), str(resident)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            results[parent] = benchmarks(json.loads(output), parent)
    report(results)
    if options.plot:
        plot(results, options.plot)
    if options.json:
        every = [of for by_name in results.values() for of in by_name.values()]
        pyperf.BenchmarkSuite(every).dump(str(options.json), replace=True)


if __name__ == "__main__":
    main()
