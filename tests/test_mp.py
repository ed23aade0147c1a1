"""ramet.mp: multiprocessing, with processes that start from a zygote."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import connection, heap, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import active_children, current_process
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest

import ramet
from ramet import CloneFlags
from ramet.mp import Context, get_context
from tests import processes
from tests.isolated import run_python
from tests.waiting import in_fork, until

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs privileges")


@pytest.fixture(scope="module", autouse=True)
def _tracker() -> Iterator[None]:
    """The resource tracker is left by whoever uses it first."""
    yield
    heap.BufferWrapper._heap = heap.Heap()  # type: ignore[attr-defined] # it keeps its files
    gc.collect()
    tracker: Any = resource_tracker._resource_tracker
    tracker._stop()


@pytest.fixture(scope="module")
def shared() -> Iterator[Context]:
    with get_context(["tests.processes"]) as context:
        yield context


@pytest.fixture
def ctx(shared: Context) -> Iterator[Context]:
    yield shared
    assert active_children() == []
    gc.collect()


def run(context: Any, target: Callable[..., object], *args: Any) -> int | None:
    process = context.Process(target=target, args=args)
    process.start()
    process.join(30)
    code: int | None = process.exitcode
    process.close()
    return code


def told(context: Any) -> dict[str, Any]:
    """What a process of a context says of itself."""
    queue = context.SimpleQueue()
    assert run(context, processes.about, queue) == 0
    answer: dict[str, Any] = queue.get()
    queue.close()
    return answer


# --- processes ----------------------------------------------------------------------------------


def test_process(ctx: Context) -> None:
    queue = ctx.SimpleQueue()
    process = ctx.Process(target=processes.about, args=(queue,), name="a name")
    assert (process.pid, process.exitcode, process.is_alive()) == (None, None, False)
    process.start()
    assert process in active_children()
    found = queue.get()
    process.join()
    assert (process.exitcode, process.is_alive()) == (0, False)
    assert found["ids"] == (process.pid, os.getpid())
    assert found["parent"] == (os.getpid(), current_process().name, True)
    assert found["authkey"] == current_process().authkey
    assert (found["name"], found["method"], found["children"]) == (
        *("a name", multiprocessing.get_start_method()),
        [],
    )
    assert found["stdin"] == ""
    assert (found["argv"], found["path"]) == (sys.argv, sys.path)
    assert found["env"] == dict(os.environ)
    assert found["interrupt"]
    tracker = resource_tracker.getfd() or 0
    assert found["tracker"] == os.fstat(tracker).st_ino
    process.close()
    with pytest.raises(ValueError, match="closed"):
        process.is_alive()
    queue.close()


def test_descriptors_of_a_process(ctx: Context) -> None:
    """The parent's pidfd, the tracker's, a queue's two, that of stdin, and the zygote's file.

    The last is that of the listing.
    """
    assert len(told(ctx)["fds"]) == 3 + 6 + 1


@pytest.mark.parametrize(
    ("how", "code"),
    [("0", 0), ("3", 3), ("exception", 1), ("text", 1), ("leave", 4), ("abort", -signal.SIGABRT)],
)
def test_exit_codes(ctx: Context, capfd: pytest.CaptureFixture[str], how: str, code: int) -> None:
    assert run(ctx, processes.end, how) == code
    said = capfd.readouterr().err
    assert ("LookupError: a reason" in said) == (how == "exception")
    assert ("a text" in said) == (how == "text")


def test_waiting_and_signals(ctx: Context) -> None:
    process = ctx.Process(target=time.sleep, args=(60,))
    process.start()
    process.join(0.01)
    process.join(-1)
    assert (process.exitcode, process.is_alive()) == (None, True)
    assert connection.wait([process.sentinel], 0) == []
    with pytest.raises(ValueError, match="still running"):
        process.close()
    process.terminate()
    assert connection.wait([process.sentinel], 20) == [process.sentinel]
    process.join()
    assert process.exitcode == -signal.SIGTERM
    assert "exitcode=-SIGTERM" in repr(process)
    process.terminate()  # it is over, and nothing happens
    process.close()
    process = ctx.Process(target=time.sleep, args=(60,), daemon=True)
    process.start()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_interrupt(ctx: Context) -> None:
    queue = ctx.SimpleQueue()
    process = ctx.Process(target=processes.interrupted, args=(queue,))
    process.start()
    assert queue.get() == "ready"
    time.sleep(0.05)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join()
    assert process.exitcode == 7
    queue.close()


def test_signals_that_are_ignored(ctx: Context) -> None:
    assert not told(ctx)["ignores"]
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        assert told(ctx)["ignores"]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_subclasses(ctx: Context) -> None:
    queue = ctx.SimpleQueue()
    process = processes.Doubler(21, queue)
    process.start()
    assert queue.get() == ("doubler", True, "Doubler", 42)
    process.join()
    assert isinstance(process, multiprocessing.process.BaseProcess)
    queue.close()
    processes.context.close()


def test_daemons_have_no_children(ctx: Context, capfd: pytest.CaptureFixture[str]) -> None:
    queue = ctx.SimpleQueue()
    process = ctx.Process(target=processes.start_another, args=(ctx, queue), daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 1
    assert "daemonic processes are not allowed to have children" in capfd.readouterr().err
    queue.close()


def test_surroundings_are_those_of_now(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx.warm_up()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAMET_TEST", "h\xe4")
    monkeypatch.delenv("PATH")
    monkeypatch.setattr(sys, "argv", ["x", "y"])
    monkeypatch.syspath_prepend("/no/such/path")
    found = told(ctx)
    assert found["cwd"] == str(tmp_path)
    assert found["env"] == dict(os.environ)
    assert found["argv"] == ["x", "y"]
    assert found["path"] == sys.path


def test_functions_of_atexit(ctx: Context, tmp_path: Path) -> None:
    assert run(ctx, processes.write_at_exit, tmp_path / "file") == 0
    assert (tmp_path / "file").read_text() == "here"


def test_what_cannot_be_pickled(ctx: Context) -> None:
    for argument in (threading.Lock(), lambda: None):
        process = ctx.Process(target=processes.put, args=(argument,))
        with pytest.raises(Exception, match="pickle"):
            process.start()
        assert (process.pid, active_children()) == (None, [])


def test_somebody_else_waits(ctx: Context) -> None:
    process = ctx.Process(target=processes.end, args=("3",))
    process.start()
    os.waitpid(process.pid or 0, 0)
    process.join()
    assert process.exitcode in {3, 255}  # the kernel may tell (Linux 6.15)
    assert active_children() == []


def test_the_parent_ends() -> None:
    """Its sentinel tells, however it ends."""
    done = run_python(
        "import os, signal\n"
        "from ramet.mp import get_context; from tests import processes\n"
        "ctx = get_context(main=False); queue = ctx.SimpleQueue()\n"
        "ctx.Process(target=processes.wait_for_parent, args=(queue,)).start()\n"
        "print(queue.get(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        check=False,
    )
    pid = int(done.stdout)
    until(lambda: not os.path.exists(f"/proc/{pid}"))


# --- what processes share -----------------------------------------------------------------------


def test_everything_that_is_passed(ctx: Context) -> None:
    ours, theirs = ctx.Pipe()
    things: dict[str, Any] = {
        "lock": ctx.Lock(),
        "rlock": ctx.RLock(),
        "semaphore": ctx.Semaphore(0),
        "event": ctx.Event(),
        "condition": ctx.Condition(),
        "barrier": ctx.Barrier(2),
        "queue": ctx.Queue(),
        "joinable": ctx.JoinableQueue(),
        "value": ctx.Value("i", 4),
        "array": ctx.Array("d", 3),
        "pipe": theirs,
    }
    process = ctx.Process(target=processes.meet, args=(things,))
    things["condition"].acquire()
    process.start()
    theirs.close()
    assert things["semaphore"].acquire(timeout=20)
    things["event"].set()
    assert things["condition"].wait(20)
    things["condition"].release()
    things["joinable"].put(1)
    things["joinable"].join()
    assert things["queue"].get(timeout=20) == "queued"
    ours.send("ab")
    assert ours.recv() == "abab"
    things["barrier"].wait(20)
    process.join()
    assert process.exitcode == 0
    assert things["value"].value == 5
    assert list(things["array"]) == [0, 2.5, 0]
    ours.close()
    for name in ("queue", "joinable"):
        things[name].close()
        things[name].join_thread()


def test_manager(ctx: Context) -> None:
    with ctx.Manager() as manager:
        numbers = manager.list([1])
        assert run(ctx, numbers.append, 2) == 0
        assert list(numbers) == [1, 2]


def test_shared_memory() -> None:
    """A process registers what it makes with its parent's tracker: nothing is said of leaks."""
    run_python(
        "from ramet.mp import get_context; from tests import processes\n"
        "from multiprocessing.shared_memory import SharedMemory\n"
        "with get_context(main=False) as ctx:\n"
        "    queue = ctx.SimpleQueue(); lock = ctx.Lock()\n"
        "    process = ctx.Process(target=processes.make_shared_memory, args=(queue,))\n"
        "    process.start(); name = queue.get(); process.join(); process.close(); queue.close()\n"
        "    memory = SharedMemory(name); assert memory.buf[0] == 42\n"
        "    memory.close(); memory.unlink()\n"
    )


# --- pools --------------------------------------------------------------------------------------


def test_pool(ctx: Context) -> None:
    with ctx.Pool(3, processes.initialize, (5,)) as pool:
        assert pool.map(processes.square, range(20)) == [i * i for i in range(20)]
        assert sorted(pool.imap_unordered(processes.square, range(5))) == [0, 1, 4, 9, 16]
        assert pool.apply(processes.initialized, (None,)) == [5]
        with pytest.raises(LookupError):
            pool.apply(processes.end, ("exception",))
        pool.apply_async(time.sleep, (60,))
    pool.join()
    with ctx.Pool(2, maxtasksperchild=1) as pool:
        assert len(set(pool.map(processes.pid_of, range(6), chunksize=1))) == 6
        pool.close()
        pool.join()


def test_executor(ctx: Context) -> None:
    with ProcessPoolExecutor(2, mp_context=ctx) as executor:
        assert list(executor.map(processes.square, range(20))) == [i * i for i in range(20)]
        with pytest.raises(LookupError):
            executor.submit(processes.end, "exception").result()
    with ProcessPoolExecutor(2, mp_context=ctx, max_tasks_per_child=1) as executor:
        # One at a time: CPython's own may wait for ever for more (gh-115634).
        pids = [executor.submit(processes.pid_of, 0).result(20) for _ in range(3)]
        assert len(set(pids)) == 3


def test_a_worker_is_killed(ctx: Context) -> None:
    with ProcessPoolExecutor(2, mp_context=ctx) as executor:
        assert executor.submit(processes.square, 3).result() == 9
        with pytest.raises(BrokenProcessPool):
            executor.submit(processes.kill_me, None).result(20)


# --- contexts -----------------------------------------------------------------------------------


def test_context(ctx: Context) -> None:
    assert isinstance(ctx, BaseContext)
    assert ctx.get_start_method() == "ramet"
    assert ctx.get_context() is ctx.get_context("ramet") is ctx
    assert ctx.get_context("spawn") is multiprocessing.get_context("spawn")
    with pytest.raises(ValueError, match="cannot find context"):
        ctx.get_context("no such")
    with pytest.raises(ValueError, match="cannot set start method"):
        ctx.set_start_method("spawn")


def test_pickled(ctx: Context) -> None:
    assert pickle.loads(pickle.dumps(ctx)) is ctx  # noqa: S301
    data = pickle.dumps(get_context(["wave"], main=False, nice=3, cwd="/", affinity=[0]))
    gc.collect()
    other = pickle.loads(data)  # noqa: S301
    assert isinstance(other, Context)
    assert pickle.dumps(other) == data
    assert other.Process is not ctx.Process


def test_processes_of_processes(ctx: Context) -> None:
    queue = ctx.SimpleQueue()
    process = ctx.Process(target=processes.start_another, args=(ctx, queue))
    process.start()
    for same in (True, True, False):
        assert queue.get() == process.pid
        assert queue.get() == (0, same)
    process.join()
    assert process.exitcode == 0
    queue.close()


def test_as_the_default(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no public way to that, but there are those who do it."""
    default = multiprocessing.context._default_context
    monkeypatch.setattr(default, "_actual_context", ctx)
    queue: Any = multiprocessing.SimpleQueue()
    assert run(multiprocessing, processes.start_by_default, queue) == 0
    assert [queue.get(), queue.get()] == ["ramet", "a grandchild"]
    queue.close()


def test_in_a_fork(ctx: Context) -> None:
    ctx.warm_up()
    ours = ctx.Process(target=time.sleep, args=(60,))
    ours.start()

    def use() -> None:
        assert ours._popen.poll() is None  # type: ignore[attr-defined]
        queue = ctx.SimpleQueue()
        assert run(ctx, processes.about, queue) == 0
        assert queue.get()["ids"][1] == os.getpid()
        ctx.close()

    in_fork(use)
    assert run(ctx, processes.end, "3") == 3
    ours.kill()
    ours.join()
    assert ours.exitcode == -signal.SIGKILL


def test_the_zygote_is_killed(ctx: Context) -> None:
    process = ctx.Process(target=time.sleep, args=(0.2,))
    process.start()
    pid = ctx._zygote.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")
    assert run(ctx, processes.end, "3") == 3
    process.join()
    assert process.exitcode == 0


def test_close() -> None:
    context = get_context(main=False)
    process = context.Process(target=time.sleep, args=(0.1,))
    process.start()
    pid = context._zygote.pid
    context.close()
    context.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)
    process.join()
    assert process.exitcode == 0
    assert run(context, processes.end, "3") == 3  # starts another
    pid = context._zygote.pid
    del process
    del context  # which its class of processes knows
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)


def test_the_interpreter_ends() -> None:
    """Daemons are ended, others are waited for, then the zygote ends."""
    done = run_python(
        "import time\n"
        "from ramet.mp import get_context; from tests import processes\n"
        "ctx = get_context(main=False); queue = ctx.SimpleQueue()\n"
        "daemon = ctx.Process(target=time.sleep, args=(60,), daemon=True); daemon.start()\n"
        "other = ctx.Process(target=time.sleep, args=(0.2,)); other.start()\n"
        "print(daemon.pid, other.pid, ctx._zygote.pid)\n"
    )
    for pid in done.stdout.split():
        assert not os.path.exists(f"/proc/{pid}")


# --- options ------------------------------------------------------------------------------------


def test_options(tmp_path: Path) -> None:
    with get_context(
        main=False,
        cwd=tmp_path,
        umask=0o37,
        nice=3,
        env={"A": "h\xe4"},
        rlimits={resource.RLIMIT_NOFILE: (50, 60)},
        start_new_session=True,
    ) as context:
        found = told(context)
    assert found["cwd"] == str(tmp_path)
    assert (found["umask"], found["nice"], found["nofile"]) == (0o37, 3, (50, 60))
    assert found["env"] == {"A": "h\xe4"}
    assert found["sid"]


def test_preload(ctx: Context) -> None:
    assert "wave" not in told(ctx)["modules"]
    with get_context(["wave"], main=False) as context:
        assert "wave" in told(context)["modules"]
    with get_context(["no_such_module"]) as context:
        with pytest.raises(ramet.ZygoteError, match="preloading no_such_module failed"):
            context.warm_up()
        with pytest.raises(ramet.ZygoteError, match="preloading no_such_module failed"):
            run(context, processes.end, "0")


@root
def test_namespaces_and_users() -> None:
    ours, theirs = multiprocessing.Pipe()
    preload = ["tests.processes"]  # whose file they may not be able to read
    with get_context(preload, main=False, flags=CloneFlags.NEWUTS, hostname="inside") as context:
        assert run(context, processes.send_state, theirs) == 0
        assert ours.recv()[0] == "inside"
    with get_context(
        preload, main=False, user=65534, group=65534, extra_groups=[5], cwd="/"
    ) as context:
        assert run(context, processes.send_state, theirs) == 0
        assert ours.recv()[1] == ((65534,) * 3, (65534,) * 3, [5])
    ours.close()
    theirs.close()


def test_cgroup(cgroup: Path) -> None:
    with get_context(main=False, cgroup=cgroup) as context, context.Pool(1) as pool:
        text = pool.apply(Path.read_text, (Path("/proc/self/cgroup"),))
        assert text.strip().endswith(cgroup.name)
        pool.terminate()
        pool.join()


def test_bad_options() -> None:
    with pytest.raises(TypeError, match="names of modules, not a string"):
        get_context("spawn")
    with pytest.raises(TypeError, match="unexpected option 'cwdd'"):
        get_context(cwdd="/")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected option 'fds'"):
        get_context(fds={})  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="cgroup must be a path"):
        get_context(cgroup=3)
    with pytest.raises(KeyError):
        get_context(user="no such user")
    with pytest.raises(ValueError, match="CLONE_NEWPID: the process would be the first"):
        get_context(flags=CloneFlags.NEWPID)
    with pytest.raises(ValueError, match="CLONE_VM: not for a copy"):
        get_context(flags=CloneFlags.VM)


def test_a_setup_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with get_context(main=False, cwd="/no/such/directory") as context:
        process = context.Process(target=time.sleep, args=(60,))
        process.start()
        connection.wait([process.sentinel], 20)
        assert process.exitcode == 1
        assert connection.wait([process.sentinel], 0) == [process.sentinel]
        said = capfd.readouterr().err
        assert "Process RametProcess-" in said
        assert 'chdir("/no/such/directory") failed: ENOENT' in said
        process.close()


# --- the main module ----------------------------------------------------------------------------


def test_options_of_the_interpreter() -> None:
    code = (
        "import sys; from ramet.mp import get_context; from tests import processes\n"
        "with get_context(main=False) as ctx:\n"
        "    q = ctx.SimpleQueue(); p = ctx.Process(target=processes.about, args=(q,)); p.start()\n"
        "    assert q.get()['flags'] == tuple(sys.flags), sys.flags\n"
        "    p.join(); p.close(); q.close()\n"
    )
    command = [sys.executable, "-O", "-B", "-W", "error", "-c", code]
    root = Path(__file__).parents[1]
    subprocess.run(command, cwd=root, check=True, timeout=60)


def script(tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "program.py"
    path.write_text(code)
    return subprocess.run(
        [sys.executable, "-X", "dev", path], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_main_module(tmp_path: Path) -> None:
    """It is imported once, by the zygote, and its classes and functions are there."""
    done = script(
        tmp_path,
        "import os, sys, ramet.mp\n"
        "print('imported', __name__, flush=True)\n"
        "ctx = ramet.mp.get_context()\n"
        "class P(ctx.Process):\n"
        "    def run(self): print('subclass', __name__)\n"
        "def double(x): return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    with ctx.Pool(2) as pool: print(pool.map(double, range(3)))\n"
        "    for p in (P(), ctx.Process(target=print, args=(double,))):\n"
        "        p.start(); p.join()\n",
    )
    assert done.stderr == ""
    first, *rest = done.stdout.splitlines()
    assert first == "imported __main__"
    assert rest.count("imported __mp_main__") == 1
    assert rest[1:3] == ["[0, 2, 4]", "subclass __mp_main__"]
    assert rest[3].startswith("<function double at ")


@pytest.mark.parametrize("what", ["ctx.Process(target=print).start()", "ctx.Pool(1)"])
def test_a_main_module_without_a_guard(tmp_path: Path, what: str) -> None:
    done = script(tmp_path, f"import ramet.mp\nctx = ramet.mp.get_context()\n{what}\n")
    assert done.returncode == 1
    assert "the main module starts a zygote while it is imported by one" in done.stderr
    assert "preloading __main__ failed" in done.stderr


def test_without_the_main_module(tmp_path: Path) -> None:
    done = script(
        tmp_path,
        "import ramet.mp\n"
        "print(__name__, flush=True)\n"
        "def f(): pass\n"
        "if __name__ == '__main__':\n"
        "    with ramet.mp.get_context(main=False) as ctx:\n"
        "        p = ctx.Process(target=print, args=('here',)); p.start(); p.join()\n"
        "        p = ctx.Process(target=f); p.start(); p.join(); print(p.exitcode)\n",
    )
    assert done.stdout.split() == ["__main__", "here", "1"]
    assert re.search("AttributeError: .* attribute 'f'", done.stderr)


# --- hard parents -------------------------------------------------------------------------------


def test_threads_of_the_parent(ctx: Context) -> None:
    """That hold locks of the allocator, of modules, of streams; and start processes themselves."""
    over = threading.Event()

    def busy() -> None:
        while not over.is_set():
            bytearray(10_000).decode("latin-1").encode()
            sys.stderr.flush()

    def start() -> None:
        codes.extend(run(ctx, processes.end, "3") for _ in range(10))

    codes: list[int | None] = []
    busy_ones = [threading.Thread(target=busy) for _ in range(3)]
    starters = [threading.Thread(target=start) for _ in range(3)]
    for thread in (*busy_ones, *starters):
        thread.start()
    for thread in starters:
        thread.join()
    over.set()
    for thread in busy_ones:
        thread.join()
    assert codes == [3] * 30


def test_nothing_is_left(ctx: Context) -> None:
    run(ctx, processes.end, "0")
    gc.collect()
    before = os.listdir("/proc/self/fd")
    zygote = f"/proc/{ctx._zygote.pid}/fd"
    theirs = os.listdir(zygote)
    for i in range(30):
        ours, pipe = ctx.Pipe()
        process = ctx.Process(target=partial(processes.end, str(i % 2)), args=())
        process.start()
        process.join()
        ours.close()
        pipe.close()
    del process
    gc.collect()
    assert os.listdir("/proc/self/fd") == before
    assert os.listdir(zygote) == theirs


def test_many_at_a_time(ctx: Context) -> None:
    queue = ctx.SimpleQueue()
    several = [ctx.Process(target=processes.put, args=(queue, i)) for i in range(30)]
    for process in several:
        process.start()
    assert sorted(queue.get() for _ in several) == list(range(30))
    for process in several:
        process.join()
        assert process.exitcode == 0
    queue.close()


def test_shared_memory_here(ctx: Context) -> None:
    memory = SharedMemory(create=True, size=10)
    try:
        assert run(ctx, processes.fill, memory.name) == 0
        assert bytes(memory.buf or b"")[3] == 7
    finally:
        memory.close()
        memory.unlink()
