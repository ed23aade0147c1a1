"""How long it takes to start /bin/true and to wait for it, and what else it does to the process.

Compares ramet.spawn, a compiled ramet.Program and ramet.Popen with posix_spawn in C,
os.posix_spawn and subprocess.Popen: plain, and with a user, a working directory and a limit; in a
process of next to no memory and in one of 2 GiB. Within a process the candidates take turns, so
that whatever else the machine does falls on all of them alike; the ratios of the medians count.
Then how many children several threads start in a second, and for how long another Python thread
stands still meanwhile.

    python benchmarks/spawn.py [--turns N]
"""

from __future__ import annotations

import ctypes
import os
import resource
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from turns import Values, benchmark, grow, in_each_parent, repeat, take_turns

import ramet

Loop = Callable[[int], None]

TRUE = "/bin/true"
C, OS = "C: posix_spawn", "os.posix_spawn"
SPAWN, PROGRAM = "ramet.spawn", "ramet.Program, compiled"
POPEN, PEER = "ramet.Popen", "subprocess.Popen"
SETUP_SPAWN = "ramet.spawn, user cwd rlimit"
SETUP_POPEN, SETUP_PEER = "ramet.Popen, user cwd rlimit", "subprocess.Popen, user cwd rlimit"
CHILDREN = dict.fromkeys((C, OS, SPAWN, PROGRAM, POPEN, PEER, SETUP_SPAWN, SETUP_POPEN), 20)
CHILDREN[SETUP_PEER] = 4
THREADS = (1, 2, 4)
SECONDS = 1.0

LIMIT = {resource.RLIMIT_NOFILE: (200, 200)}


def set_limit() -> None:
    """Do what a program does with setrlimit, in the peer's fork."""
    resource.setrlimit(resource.RLIMIT_NOFILE, LIMIT[resource.RLIMIT_NOFILE])


def user() -> int:
    """Choose a user to change to: another one if that is allowed."""
    return 65534 if os.geteuid() == 0 else os.geteuid()


def candidates(library: ctypes.CDLL) -> dict[str, Loop]:
    """Make the loops to be compared."""
    uid = user()
    program = ramet.Program()
    program.close_range(3)
    program.execve(TRUE, ["true"])

    def c_loop(n: int) -> None:
        if library.posix_spawn_loop(n) != 0:
            raise OSError("posix_spawn")

    return {
        C: c_loop,
        OS: repeat(lambda: os.waitpid(os.posix_spawn(TRUE, ["true"], os.environ), 0)),
        SPAWN: repeat(lambda: ramet.spawn([TRUE]).wait()),
        PROGRAM: repeat(lambda: program.start().wait()),
        POPEN: repeat(lambda: ramet.Popen([TRUE]).wait()),
        PEER: repeat(lambda: subprocess.Popen([TRUE]).wait()),
        SETUP_SPAWN: repeat(lambda: ramet.spawn([TRUE], user=uid, cwd="/", rlimits=LIMIT).wait()),
        SETUP_POPEN: repeat(lambda: ramet.Popen([TRUE], user=uid, cwd="/", rlimits=LIMIT).wait()),
        SETUP_PEER: repeat(
            lambda: subprocess.Popen(
                [TRUE],
                user=uid,
                cwd="/",
                preexec_fn=set_limit,  # noqa: PLW1509 - there is no other way
            ).wait()
        ),
    }


def rate(loop: Loop, threads: int) -> float:
    """Count the children a second that several threads start."""
    counts = [0] * threads
    end = time.monotonic() + SECONDS

    def work(place: int) -> None:
        while time.monotonic() < end:
            loop(1)
            counts[place] += 1

    workers = [threading.Thread(target=work, args=(place,)) for place in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / SECONDS


def longest_stall(loop: Loop) -> float:
    """Measure for how long a thread that wants to run every 0.2 ms can't; the median of ten."""
    stalls = []
    for _ in range(10):
        stop = threading.Event()
        longest = [0.0]

        def tick(stop: threading.Event = stop, longest: list[float] = longest) -> None:
            last = time.perf_counter()
            while not stop.is_set():
                time.sleep(0.0002)
                now = time.perf_counter()
                longest[0] = max(longest[0], now - last)
                last = now

        ticker = threading.Thread(target=tick)
        ticker.start()
        loop(4)
        stop.set()
        ticker.join()
        stalls.append(longest[0])
    return statistics.median(stalls)


def report(name: str, values: Values) -> dict[str, float]:
    """Print medians, deviations and ratios."""
    medians = {}
    print(f"\nParent with {name} resident{'median':>28}{'MAD':>10}{'of ' + C:>20}")
    for candidate, seconds in values.items():
        of = benchmark(candidate, seconds)
        medians[candidate] = of.median()
        ratio = medians[candidate] / medians[C]
        print(
            f"  {candidate:36}{medians[candidate] * 1e6:14.0f} us"
            f"{of.median_abs_dev() * 1e6:8.0f}{ratio:17.2f} x"
        )
    for ours, peer in ((SPAWN, C), (PROGRAM, C), (POPEN, PEER)):
        print(f"  {ours} / {peer}: {medians[ours] / medians[peer]:.2f}")
    print(f"  {SETUP_PEER} / {SETUP_POPEN}: {medians[SETUP_PEER] / medians[SETUP_POPEN]:.1f}")
    return medians


def run(resident: int, name: str, turns: int) -> None:
    """Measure and report for one parent, which is this process."""
    memory = grow(resident)
    with tempfile.TemporaryDirectory() as directory:
        loops = candidates(ctypes.CDLL(str(build(Path(directory)))))
        report(name, take_turns(loops, CHILDREN, turns))
        print("  children a second from threads:  " + "".join(f"{n:>8}" for n in THREADS))
        for candidate in (SPAWN, POPEN, PEER):
            rates = [rate(loops[candidate], threads) for threads in THREADS]
            print(f"    {candidate:32}" + "".join(f"{value:8.0f}" for value in rates), end="")
            print(f"   two / one: {rates[1] / rates[0]:.2f}")
        for ours, peer in ((POPEN, PEER), (SETUP_POPEN, SETUP_PEER)):
            mine, others = longest_stall(loops[ours]), longest_stall(loops[peer])
            print(
                f"  longest stall of another thread: {ours} {mine * 1e3:.2f} ms, "
                f"{peer} {others * 1e3:.2f} ms: {others / mine:.1f} x"
            )
    memory.close()


def build(directory: Path) -> Path:
    """Compile the loop in C."""
    library = directory / "spawn_loop.so"
    source = Path(__file__).with_name("spawn_loop.c")
    command = [os.environ.get("CC", "cc"), "-O2", "-Wall", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", library, source], check=True)
    return library


if __name__ == "__main__":
    in_each_parent(__file__, __doc__ or "", 20, run)
