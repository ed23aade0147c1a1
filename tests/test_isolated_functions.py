"""isolated: functions whose calls run in fresh children, wherever they are carried to."""

from __future__ import annotations

import asyncio
import inspect
import math
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ramet
from ramet import ChildDiedError, _isolated, isolated
from tests.functions import add, fail, ids, segfault, state
from tests.isolated import run_python
from tests.isolated_functions import Machine, depth, family, isolated_add, slow
from tests.waiting import Background, busy_thread, in_fork, until


@pytest.fixture(scope="module", autouse=True)
def busy() -> Iterator[None]:
    """A thread that always has something to do. No zygote is left at the end."""
    with busy_thread():
        yield
    _isolated._close_all()


def _carried(thing: Any, module: Any = pickle) -> Any:
    return pickle.loads(module.dumps(thing))  # noqa: S301 - just made


# --- calls --------------------------------------------------------------------------------------


def test_call() -> None:
    pid, parent, numbers = family(1, 2, last=3)
    assert (parent, numbers) == (os.getpid(), (1, 2, 3))
    assert family()[0] not in {pid, os.getpid()}
    assert isolated_add(1, b=2) == 3
    assert isolated(math.factorial, main=False)(5) == 120


def test_what_it_looks_like() -> None:
    assert vars(family)["__name__"] == family.__qualname__ == "family"
    assert family.__module__ == "tests.isolated_functions"
    assert family.__doc__ == "Say who we are."
    assert list(inspect.signature(family).parameters) == ["others", "last"]
    assert family.__wrapped__()[0] == os.getpid()
    assert repr(family).startswith("<ramet.isolated <function family at")


def test_what_goes_wrong() -> None:
    with pytest.raises(LookupError) as caught:
        isolated(fail, main=False)("x")
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(ChildDiedError, match="SIGSEGV"):
        isolated(segfault, main=False)()
    with pytest.raises(TimeoutError):
        slow(60)
    assert slow(0) != os.getpid()


def test_options(tmp_path: Path) -> None:
    found = isolated(
        state,
        main=False,
        preload=["wave"],
        cwd=tmp_path,
        nice=3,
        rlimits={resource.RLIMIT_NOFILE: (50, 60)},
    )()
    assert (found["cwd"], found["nice"]) == (str(tmp_path.resolve()), 3)
    assert found["nofile"] == (50, 60)
    assert "wave" in found["modules"]
    with pytest.raises(TypeError, match="no option 'no_such_option'"):
        isolated(add, no_such_option=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="no option 'fds'"):
        isolated(add, fds={})  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="3 cannot be called"):
        isolated(3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="timeout"):
        isolated(timeout="1")  # type: ignore[call-overload]


def test_methods() -> None:
    machine = Machine(3)
    number, pid = machine.added(4)
    assert (number, pid != os.getpid()) == (7, True)
    assert Machine.added(machine, 4)[0] == 7
    assert Machine.alone(5)[0] == machine.alone(5)[0] == 5
    assert _carried(machine.added)(1)[0] == 4
    assert _carried(Machine.alone) is Machine.alone


def test_a_call_within_a_call() -> None:
    """It is isolated from its caller, which is isolated from us."""
    pids = depth(2)
    assert len({*pids, os.getpid()}) == 4
    for pid in pids:
        until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))  # type: ignore[misc]


def test_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(isolated_add, range(40))) == list(range(1, 41))


def test_interrupted() -> None:
    """The child is killed."""
    main = threading.get_ident()

    def interrupt() -> None:
        time.sleep(0.2)
        signal.pthread_kill(main, signal.SIGINT)

    helper = Background(interrupt)
    with pytest.raises(KeyboardInterrupt):
        isolated(time.sleep, main=False)(60)
    helper.result()


# --- being carried ------------------------------------------------------------------------------


def test_by_name() -> None:
    assert _carried(family) is family
    assert len(pickle.dumps(family)) < 100
    assert _carried(Machine.added) is Machine.added


def test_by_the_function() -> None:
    again = _carried(isolated(add, main=False, timeout=5, nice=2))
    assert again._settings == ((), False, 5, {"nice": 2})
    assert again.__wrapped__ is add
    assert again(1) == 2
    assert _carried(isolated(partial(add, 3), main=False))() == 4
    twice = isolated(family, main=False)
    assert _carried(twice)(1)[2] == (1, 0)


def test_by_value() -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    more = 5

    @isolated(main=False)
    def closure(number: int) -> int:
        return number + more if number else closure.__wrapped__(1)

    for function in (closure, isolated(lambda number: number + more, main=False)):
        assert function(2) == 7
        for module in (pickle, cloudpickle):
            assert _carried(function, module)(2) == 7
    assert _carried(closure)(0) == 6


def test_without_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(isolated(lambda: 1, main=False))
    assert _carried(family) is family
    assert isolated_add(1) == 2


MAIN = """
import multiprocessing, os, pickle, sys
import ramet

CALLS = []

@ramet.isolated(timeout=20)
def double(x):
    CALLS.append(x)
    return 2 * x, os.getppid()

@ramet.isolated
def factorial(n):
    return n * factorial.__wrapped__(n - 1) if n else 1

if __name__ == "__main__":
    assert double(4) == (8, os.getpid())
    assert factorial(4) == 24
    assert not CALLS
    if len(sys.argv) > 1:
        assert ramet.isolated(lambda x: x)(3) == 3
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        value, parent = pool.apply(double, (5,))
    assert value == 10 and parent != os.getpid()
    print("done")
"""


@pytest.mark.parametrize("cloudpickle", [True, False])
def test_functions_of_main(tmp_path: Path, cloudpickle: bool) -> None:
    script = tmp_path / "script.py"
    if cloudpickle:
        pytest.importorskip("cloudpickle")
        script.write_text(MAIN)
    else:
        script.write_text(f"import sys\nsys.modules['cloudpickle'] = None\n{MAIN}")
    command = [sys.executable, str(script), *["by value"] * cloudpickle]
    root = str(Path(__file__).parents[1])
    done = ramet.run(
        command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_functions_of_an_interactive_main() -> None:
    """They cannot be imported, so they go by value."""
    pytest.importorskip("cloudpickle")
    run_python(
        "import os, ramet\n"
        "more = 3\n"
        "@ramet.isolated\n"
        "def f(x): return x + more, os.getppid()\n"
        "assert f(1) == (4, os.getpid())\n"
    )


# --- the zygotes of a process -------------------------------------------------------------------


def _zygote_pids() -> set[int | None]:
    return {zygote.pid for zygote in _isolated._zygotes.values()}


def test_one_zygote_for_all() -> None:
    isolated_add(1)
    before = _zygote_pids()
    isolated(add, main=False, timeout=20, nice=1)(1)
    family()
    assert _zygote_pids() == before


def test_the_number_of_zygotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_isolated, "_MOST_ZYGOTES", 2)
    _isolated._close_all()
    modules = ["wave", "colorsys", "chunk" if sys.version_info < (3, 12) else "sched"]
    with_first, with_second, with_third = (
        isolated(add, main=False, preload=[module]) for module in modules
    )
    with_first(1)
    with_second(1)
    with_first(1)
    with_third(1)
    assert [preload for (preload, _) in _isolated._zygotes] == [(modules[0],), (modules[2],)]
    assert with_second(1) == 2


def test_a_zygote_that_is_killed() -> None:
    isolated_add(1)
    for pid in _zygote_pids():
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert isolated_add(1) == 2


def test_in_a_fork() -> None:
    isolated_add(1)
    ours = _zygote_pids()

    def use() -> None:
        assert not _isolated._zygotes
        assert family()[1] == os.getpid()
        assert not _zygote_pids() & ours
        _isolated._close_all()

    with _isolated._lock:  # as another thread might
        in_fork(use)
    assert isolated_add(1) == 2
    assert _zygote_pids() >= ours


def test_the_end_of_the_interpreter() -> None:
    done = run_python(
        "import ramet\n"
        "from ramet import _isolated\n"
        "assert ramet.isolated(pow, main=False)(2, 3) == 8\n"
        "print(*(zygote.pid for zygote in _isolated._zygotes.values()))\n"
    )
    assert not os.path.exists(f"/proc/{int(done.stdout)}")


# --- where it is carried to ---------------------------------------------------------------------


def test_asyncio() -> None:
    async def main() -> int:
        return await asyncio.to_thread(isolated_add, 1)

    assert asyncio.run(main()) == 2


def _in_daemon(queue: Any) -> None:
    queue.put((os.getpid(), multiprocessing.current_process().daemon, isolated(ids)()))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_daemonic_process(method: str) -> None:
    """Where multiprocessing itself allows no children."""
    run_python(
        "import multiprocessing\n"
        "from tests.test_isolated_functions import _in_daemon\n"
        f"context = multiprocessing.get_context({method!r})\n"
        "queue = context.SimpleQueue()\n"
        "process = context.Process(target=_in_daemon, args=[queue], daemon=True)\n"
        "process.start()\n"
        "pid, daemon, (child, parent) = queue.get()\n"
        "process.join()\n"
        "assert daemon and parent == pid == process.pid != child\n"
        "assert process.exitcode == 0\n"
    )


def test_joblib() -> None:
    pytest.importorskip("joblib")
    run_python(
        "import warnings; warnings.simplefilter('default')\n"
        "import os\n"
        "from joblib import Parallel, delayed\n"
        "from joblib.externals.loky import get_reusable_executor\n"
        "from tests.isolated_functions import family\n"
        "import ramet\n"
        "@ramet.isolated\n"
        "def here(x): return os.getppid(), x\n"
        "found = Parallel(2)(delayed(family)(i) for i in range(4))\n"
        "assert [numbers[0] for _, _, numbers in found] == [0, 1, 2, 3]\n"
        "assert os.getpid() not in {parent for _, parent, _ in found}\n"
        "assert [x for _, x in Parallel(2)(delayed(here)(i) for i in range(4))] == [0, 1, 2, 3]\n"
        "get_reusable_executor().shutdown()\n",
    )


DASK = """
import os, signal, time
import dask
from distributed import Client, LocalCluster
import ramet
from tests.functions import add
from tests.isolated_functions import family
from tests.test_isolated_functions import zygotes_of_a_worker

@ramet.isolated(timeout=20)
def here(x):
    if x == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return os.getppid(), x

if __name__ == "__main__":
    dask.config.set({"distributed.worker.daemon": True})
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        workers = set(client.run(os.getpid).values())
        assert len(workers) == 2
        futures = [client.submit(here, x, pure=False, retries=0) for x in range(6)]
        for x, future in enumerate(futures):
            if x == 3:
                assert isinstance(future.exception(), ramet.ChildDiedError), future.exception()
            else:
                parent, value = future.result()
                assert parent in workers and value == x
        for _, parent, numbers in client.gather(client.map(family, range(8))):
            assert parent in workers
        assert client.submit(ramet.isolated(add, rlimits={7: 40}), 1, 2).result() == 3
        more = 10
        assert client.submit(ramet.isolated(lambda x: x + more), 1).result() == 11
        slow = client.submit(ramet.isolated(time.sleep, timeout=0.2), 60)
        assert isinstance(slow.exception(), TimeoutError)
        assert set(client.run(os.getpid).values()) == workers  # none has died
        zygotes = client.run(zygotes_of_a_worker)
    print("zygotes", *(pid for pids in zygotes.values() for pid in pids))
"""


def zygotes_of_a_worker() -> list[int]:
    return [zygote.pid for zygote in _isolated._zygotes.values() if zygote.pid is not None]


def test_dask(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    script = tmp_path / "script.py"
    script.write_text(DASK)
    root = str(Path(__file__).parents[1])
    done = ramet.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pids = done.stdout.partition("zygotes")[2].split()
    assert pids
    for pid in pids:
        until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))  # type: ignore[misc]
