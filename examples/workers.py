"""A pool, and a loader of data over worker processes, whose processes start from a warmed zygote.

    python examples/workers.py

It costs the same from a process that is large, or has threads. The same context goes to others::

    DataLoader(dataset, num_workers=4, multiprocessing_context=ctx)      # torch.utils.data
    ProcessPoolExecutor(mp_context=ctx)                                  # concurrent.futures
    Parallel(n_jobs=4, backend=ctx)                                      # joblib
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ramet.mp

ctx = ramet.mp.get_context(preload=["fractions"])


def harmonic(n: int) -> str:
    """Do some work with a module that the zygote has imported, once for all."""
    from fractions import Fraction  # noqa: PLC0415

    return str(sum(Fraction(1, i) for i in range(1, n + 1)))


def load(dataset: Sequence[Any], wanted: Any, loaded: Any) -> None:
    """Be a worker: load the batches whose numbers are wanted."""
    for number, indices in iter(wanted.get, None):
        loaded.put((number, [dataset[i] for i in indices]))


class Loader:
    """Batches of a dataset in their order, loaded by worker processes ahead of time.

    With torch this is what DataLoader does, with more to it.
    """

    def __init__(self, dataset: Sequence[Any], batch: int, workers: int = 2) -> None:
        """Prepare.

        Args:
            dataset: what is to be loaded; a copy goes to each worker.
            batch: how many of its items come at a time.
            workers: how many processes there are.
        """
        self._dataset, self._workers = dataset, workers
        self._batches = [
            range(start, min(start + batch, len(dataset)))
            for start in range(0, len(dataset), batch)
        ]

    def __iter__(self) -> Iterator[list[Any]]:
        """Start the workers, and yield the batches."""
        wanted, loaded = ctx.Queue(), ctx.Queue()
        processes = [
            ctx.Process(target=load, args=(self._dataset, wanted, loaded), daemon=True)
            for _ in range(self._workers)
        ]
        for process in processes:
            process.start()
        for request in (*enumerate(self._batches), *[None] * self._workers):
            wanted.put(request)
        early: dict[int, list[Any]] = {}
        for number in range(len(self._batches)):
            while number not in early:
                found, items = loaded.get()
                early[found] = items
            yield early.pop(number)
        for process in processes:
            process.join()


class Squares(Sequence[int]):
    """A dataset."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: Any) -> Any:
        return index * index


def main() -> None:
    """Show it all, from a process that has a thread and much memory."""
    ballast = bytearray(os.urandom(1000) * 100_000)
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    with ctx, ctx.Pool(2) as pool:
        print("A pool:", pool.map(harmonic, [1, 2, 3, 10]))
        print("A loader:", *Loader(Squares(), batch=4))
        start = time.perf_counter()
        process = ctx.Process(target=os.getpid)
        process.start()
        process.join()
        took = (time.perf_counter() - start) * 1000
        print(f"A process of a parent with {len(ballast) >> 20} MiB: {took:.1f} ms")


if __name__ == "__main__":
    main()
