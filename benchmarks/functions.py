"""How long it takes to run a Python function in a fresh process, and to have its result.

Compares ramet.Zygote, ramet.futures.CloneExecutor, processes of ramet.mp and ramet.fork with
os.fork, with multiprocessing's ways and with loky, for a function that does nothing and for one
that uses numpy, in a process of next to no memory and in one of 2 GiB. The functions are in a
module of their own, which is preloaded with numpy by all that can. multiprocessing's processes also
import the main module, unless it is preloaded (in the fork server from Python 3.13 on) or there
is none; each way is shown. loky has a new executor for each task, since its processes are not
fresh otherwise. Within a process the candidates take turns, so that whatever else the machine does
falls on all of them alike; the ratios of the medians count.

    python benchmarks/functions.py [--turns N]
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.context import BaseContext
from types import ModuleType
from unittest import mock

import loky  # type: ignore[import-untyped]
import tasks
from turns import Values, benchmark, grow, in_each_parent, repeat, take_turns

import ramet.mp
from ramet.futures import CloneExecutor

ZYGOTE, FORK, RAMET_FORK = "Zygote.call", "os.fork", "ramet.fork"
EXECUTOR, MP = "CloneExecutor", "ramet.mp"
MP_FORK, SERVER = "multiprocessing fork", "multiprocessing forkserver"
SPAWN, LOKY = "multiprocessing spawn", "loky"
SERVER_ONLY, SPAWN_ONLY = f"{SERVER}, no main module", f"{SPAWN}, no main module"
CHILDREN = {ZYGOTE: 20, EXECUTOR: 20, MP: 20, FORK: 5, RAMET_FORK: 5, MP_FORK: 5}
CHILDREN |= dict.fromkeys((SERVER, SERVER_ONLY, SPAWN, SPAWN_ONLY, LOKY), 2)
PRELOAD = ["tasks", "numpy"]


def candidates(
    zygote: ramet.Zygote,
    executor: CloneExecutor,
    own: ramet.mp.Context,
    function: Callable[[], object],
) -> dict[str, Callable[[], object]]:
    """Make what is compared: each runs the function once."""

    def os_fork() -> None:
        pid = os.fork()
        if pid == 0:
            function()
            os._exit(0)
        os.waitpid(pid, 0)

    def ramet_fork() -> None:
        child = ramet.fork()
        if child is None:
            function()
            os._exit(0)
        with child:
            child.wait()

    def process(context: BaseContext) -> Callable[[], None]:
        def start() -> None:
            child = context.Process(target=function)  # type: ignore[attr-defined]
            child.start()
            child.join()

        return start

    def without_main(start: Callable[[], None]) -> Callable[[], None]:
        return mock.patch.dict(sys.modules, __main__=ModuleType("__main__"))(start)

    def loky_task() -> None:
        with loky.ProcessPoolExecutor(1) as pool:
            pool.submit(function).result()

    names = ("fork", "forkserver", "spawn")
    standard: dict[str, BaseContext] = {name: multiprocessing.get_context(name) for name in names}
    standard["forkserver"].set_forkserver_preload(["__main__", *PRELOAD])
    return {
        ZYGOTE: lambda: zygote.call(function),
        EXECUTOR: lambda: executor.submit(function).result(),
        MP: process(own),
        FORK: os_fork,
        RAMET_FORK: ramet_fork,
        MP_FORK: process(standard["fork"]),
        SERVER: process(standard["forkserver"]),
        SERVER_ONLY: without_main(process(standard["forkserver"])),
        SPAWN: process(standard["spawn"]),
        SPAWN_ONLY: without_main(process(standard["spawn"])),
        LOKY: loky_task,
    }


def measure(resident: int, name: str, turns: int) -> None:
    """Measure and report for one parent, which is this process."""
    memory = grow(resident)
    with (
        ramet.Zygote(PRELOAD, main=False) as zygote,
        CloneExecutor(1, preload=PRELOAD, main=False) as executor,
        ramet.mp.get_context(PRELOAD, main=False) as own,
    ):
        for function in (tasks.nothing, tasks.product):
            starts = candidates(zygote, executor, own, function)
            loops = {candidate: repeat(start) for candidate, start in starts.items()}
            values = take_turns(loops, CHILDREN, turns)
            report(f"{function.__name__}, parent with {name} resident", values)
    memory.close()


def report(title: str, values: Values) -> None:
    """Print medians, deviations and ratios."""
    print(f"\n{title:44}{'median':>14}{'MAD':>10}{'of Zygote.call':>18}")
    benchmarks = {name: benchmark(name, seconds) for name, seconds in values.items()}
    base = benchmarks[ZYGOTE].median()
    for candidate, of in benchmarks.items():
        median = of.median()
        print(
            f"  {candidate:38}{median * 1e3:12.2f} ms{of.median_abs_dev() * 1e3:8.2f}"
            f"{median / base:16.1f} x"
        )


if __name__ == "__main__":
    in_each_parent(__file__, __doc__ or "", 15, measure)
