"""Zygote: Python functions in fresh children, which are ours."""

from __future__ import annotations

import array
import ast
import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ramet
from ramet import ChildDiedError, CloneFlags, FunctionChild, Zygote, ZygoteError, _values
from tests import functions
from tests.functions import (
    add,
    double,
    fail,
    identity,
    ids,
    interrupt_self,
    nap,
    state,
    targets,
    trace_of_a_product,
    unpicklable,
    write,
)
from tests.isolated import run_python
from tests.waiting import Background, in_fork, stopped, until

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs privileges")


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    with Zygote(main=False) as one:
        yield one


# --- calls --------------------------------------------------------------------------------------


def test_call(zygote: Zygote) -> None:
    assert zygote.call(add, 2, b=3) == 5
    pid, parent = zygote.call(ids)
    assert parent == os.getpid()
    assert pid != zygote.pid
    assert zygote.call(os.getpid) != pid


def test_start(zygote: Zygote) -> None:
    with zygote.start(time.sleep, 60) as child:
        assert child.pid == child.child.pid
        os.fstat(child.fileno())
        with pytest.raises(TimeoutError):
            child.result(0.01)
        child.kill()
        with pytest.raises(ChildDiedError, match="killed by SIGKILL before its function") as caught:
            child.result()
        assert caught.value.status.signal == signal.SIGKILL
    with zygote.start(add, 1) as child:
        assert child.exception() is None
        assert child.result() == child.result() == 2


def test_map(zygote: Zygote) -> None:
    assert list(zygote.map(add, range(20), range(20), workers=3)) == list(range(0, 40, 2))
    with pytest.raises(LookupError):
        list(zygote.map(fail, ["x"]))


@pytest.mark.parametrize(("kind", "error"), [("x", LookupError), ("exit", SystemExit)])
def test_exceptions(zygote: Zygote, kind: str, error: type[BaseException]) -> None:
    with pytest.raises(error) as caught:
        zygote.call(fail, kind)
    cause = str(caught.value.__cause__)
    assert "in fail" in cause
    assert functions.__file__ in cause
    with zygote.start(fail, kind) as child:
        assert isinstance(child.exception(), error)


def test_what_cannot_be_pickled(zygote: Zygote) -> None:
    with pytest.raises(TypeError, match="cannot pickle") as value:
        zygote.call(unpicklable)
    assert "_thread.lock" in str(value.value)
    with pytest.raises(RuntimeError, match="OddError: odd") as error:
        zygote.call(fail, "odd")
    assert "in fail" in str(error.value.__cause__)
    with pytest.raises(Exception, match="pickle"):
        zygote.call(double, threading.Lock())
    assert zygote.call(add, 1) == 2


def test_children_that_end(zygote: Zygote) -> None:
    for fn, args, said in (
        (os._exit, (3,), "exited with 3"),
        (os.abort, (), "killed by SIGABRT"),
        (signal.raise_signal, (signal.SIGKILL,), "killed by SIGKILL"),
    ):
        with pytest.raises(ChildDiedError, match=said):
            zygote.call(fn, *args)
    assert zygote.call(add, 1) == 2


@pytest.mark.parametrize("size", [0, 1, 100_000, 20_000_000])
def test_buffers(zygote: Zygote, size: int) -> None:
    data = bytearray(os.urandom(min(size, 1000)) * max(size // 1000, 1))
    for kind in (bytes, bytearray):
        result = zygote.call(double, kind(data))
        assert result == [data, data]
    numbers = zygote.call(double, array.array("d", [1.5]))
    assert numbers == [array.array("d", [1.5])] * 2


def test_numpy_is_not_copied(zygote: Zygote) -> None:
    numpy = pytest.importorskip("numpy")
    result = zygote.call(double, numpy.arange(1_000_000))
    assert (result[0] == numpy.arange(1_000_000)).all()
    assert not result[0].flags.owndata
    result[0][0] = 5  # and is ours to write to


# --- options ------------------------------------------------------------------------------------


def test_options(zygote: Zygote, tmp_path: Path) -> None:
    plain = zygote.call(state)
    assert plain["fds"] == [0, 1, 2, 3, 4]  # the result, and the listing itself
    assert plain["threads"] == 1
    assert plain["cwd"] == os.getcwd()
    bound = zygote.using(
        cwd=tmp_path,
        umask=0o37,
        nice=3,
        env={"A": "h\xe4"},
        rlimits={resource.RLIMIT_NOFILE: (50, 60)},
        start_new_session=True,
    )
    found = bound.call(state)
    assert found["cwd"] == str(tmp_path.resolve())
    assert (found["umask"], found["nice"], found["nofile"]) == (0o37, 3, (50, 60))
    assert found["env"] == {"A": "h\xe4"}
    assert found["sid"]
    again = zygote.call(state)
    assert {name: again[name] for name in ("cwd", "env", "nice")} == {
        name: plain[name] for name in ("cwd", "env", "nice")
    }


def test_descriptors(zygote: Zygote) -> None:
    read, write_end = os.pipe()
    zygote.using(fds={9: write_end}).call(write, 9, b"nine")
    zygote.using(fds={1: write_end}).call(write, 1, b" one")
    os.close(write_end)
    assert os.read(read, 100) == b"nine one"
    assert os.read(read, 100) == b""
    os.close(read)


@root
def test_credentials(zygote: Zygote) -> None:
    found = zygote.using(user=65534, group=65534, extra_groups=[5]).call(state)
    assert found["ids"] == ((65534,) * 3, (65534,) * 3, [5])


def test_namespaces(zygote: Zygote) -> None:
    if os.geteuid():
        pytest.skip("needs privileges")
    pid, parent = zygote.using(flags=CloneFlags.NEWPID | CloneFlags.NEWNET).call(ids)
    assert (pid, parent) == (1, 0)
    if CloneFlags.NEWTIME in ramet.probe().flags:
        inside = zygote.using(flags=CloneFlags.NEWTIME).call(os.readlink, "/proc/self/ns/time")
        assert inside != os.readlink("/proc/self/ns/time")
    with Zygote(flags=CloneFlags.NEWUTS, main=False) as other:
        theirs = other.call(os.readlink, "/proc/self/ns/uts")
        assert theirs != os.readlink("/proc/self/ns/uts")


def test_one_id_is_mapped_by_the_child(zygote: Zygote) -> None:
    found = zygote.using(uid_map=7, gid_map=8).call(identity)
    assert (found["uid"], found["gid"]) == (7, 8)
    assert found["uid_map"] == ["7", str(os.geteuid()), "1"]
    assert found["fds"] == [0, 1, 2, 3, 4]


@root
def test_many_ids_are_mapped_by_us(zygote: Zygote) -> None:
    maps = [(0, 1000, 10), (10, 5000, 1)]
    bound = zygote.using(uid_map=maps, gid_map=maps, user=10, group=5, fds={3: 0})
    for _ in range(2):  # what one of them uses, the next has anew
        found = bound.call(identity)
        assert (found["uid"], found["gid"]) == (10, 5)
        assert found["uid_map"] == ["0", "1000", "10", "10", "5000", "1"]
        assert len(found["fds"]) == 6  # the result, and the listing
    with pytest.raises(OSError, match="Invalid argument"):
        zygote.using(uid_map=[(0, 1, 1), (0, 1, 1)]).call(identity)
    assert zygote.call(add, 1) == 2


def test_before_run(zygote: Zygote, tmp_path: Path) -> None:
    def steps(program: ramet.Program) -> None:
        program.mkdir(tmp_path / "made")
        opened = program.open(tmp_path / "made" / "file", os.O_WRONLY | os.O_CREAT, 0o600)
        program.write(opened, b"by the child")
        program.close(opened)
        program.chdir("made")

    bound = zygote.using(cwd=tmp_path, before_run=steps)
    assert bound.call(os.getcwd) == str(tmp_path.resolve() / "made")
    assert (tmp_path / "made" / "file").read_bytes() == b"by the child"
    with pytest.raises(FileExistsError, match=r"mkdirat\(.*made.*\) failed.*step 2 of 6") as caught:
        bound.call(os.getcwd)
    assert isinstance(caught.value, ramet.ChildError)
    with bound.start(os.getcwd) as child:
        assert isinstance(child.exception(), FileExistsError)
    with pytest.raises(ValueError, match="in another process"):
        zygote.using(before_run=lambda program: program.execve("/bin/true", ["true"]))


def test_descriptors_at_any_number(zygote: Zygote, tmp_path: Path) -> None:
    """Those that a child gets may have the numbers that it is given others at."""
    paths = [tmp_path / name for name in "abcdef"]
    files = [os.open(path, os.O_RDWR | os.O_CREAT) for path in paths]
    for numbers in (
        [3, 4, 5, 6, 7, 8],
        [8, 7, 6, 5, 4, 3],
        [4, 3, 200, 6, 5, 0],
        [9, 2, 4, 1, 3, 8],
    ):
        bound = zygote.using(fds=dict(zip(numbers, files, strict=True)))
        found = bound.call(targets)
        assert {number: found[number] for number in numbers} == dict(
            zip(numbers, map(str, paths), strict=True)
        )
        assert len(found.keys() - numbers - {0, 1, 2}) == 2  # the result, and the listing
    with pytest.raises(OSError, match="can't have these descriptors"):
        zygote.using(fds={1 << 30: files[0]}).call(targets)
    for file in files:
        os.close(file)


def test_interrupts(zygote: Zygote) -> None:
    """Those of the terminal go to all of its processes; the zygote is not to end by it."""
    zygote.warm_up()
    assert zygote.pid is not None
    os.kill(zygote.pid, signal.SIGINT)
    assert zygote.call(interrupt_self) == "interrupted"
    assert signal.SIGINT not in zygote.call(signal.pthread_sigmask, signal.SIG_BLOCK, [])


def test_cgroup(zygote: Zygote, cgroup: Path) -> None:
    text = zygote.using(cgroup=cgroup).call(Path.read_text, Path("/proc/self/cgroup"))
    assert text.strip().endswith(cgroup.name)


def test_bad_options(zygote: Zygote) -> None:
    with pytest.raises(ValueError, match="CLONE_VM: not for a copy"):
        zygote.using(flags=CloneFlags.VM).call(add, 1)
    with pytest.raises(FileNotFoundError, match="chdir"):
        zygote.using(cwd="/missing").call(add, 1)
    with pytest.raises(KeyError):
        zygote.using(user="no such user")
    with pytest.raises(OSError, match="Bad file descriptor"):
        zygote.using(fds={5: 999}).call(add, 1)
    with pytest.raises(ValueError, match="setup of a child"):
        zygote.using(before_run=lambda program: program.write(9, bytes(70_000))).call(add, 1)
    long = zygote.using(env={"A": "x" * 70_000})
    assert long.call(os.getenv, "A") == "x" * 70_000
    assert zygote.call(add, 1) == 2


def test_call_with_a_timeout(zygote: Zygote) -> None:
    with pytest.raises(TimeoutError):
        zygote.using(timeout=0.05).call(time.sleep, 60)
    zygote.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


# --- preloading ---------------------------------------------------------------------------------


def test_preload() -> None:
    with Zygote(preload=["wave"], main=False) as zygote:
        assert "wave" in zygote.call(state)["modules"]
    with Zygote(main=False) as zygote:
        assert "wave" not in zygote.call(state)["modules"]


def test_a_preload_that_fails() -> None:
    with Zygote(preload=["no_such_module"], main=False) as zygote:
        with pytest.raises(ZygoteError, match="preloading no_such_module failed"):
            zygote.call(add, 1)
        with pytest.raises(ZygoteError, match="ModuleNotFoundError"):
            zygote.warm_up()


def test_a_preload_that_starts_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    (tmp_path / "starts_a_thread.py").write_text(f"import threading, time\n{start}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        Zygote(preload=["starts_a_thread"], main=False) as zygote,
        pytest.raises(ZygoteError, match=r"starts_a_thread has started threads.*OMP_NUM_THREADS"),
    ):
        zygote.warm_up()


def test_numpy_preloaded() -> None:
    pytest.importorskip("numpy")
    with Zygote(preload=["numpy"], main=False) as zygote:
        assert zygote.call(trace_of_a_product, 200) == 200 * 200


def test_functions_of_main() -> None:
    done = run_python(
        "import sys, tempfile, subprocess, os\n"
        "code = '''\n"
        "import ramet\n"
        "def double(x): return 2 * x\n"
        'if __name__ == "__main__":\n'
        "    with ramet.Zygote() as zygote:\n"
        "        print(zygote.call(double, 4))\n"
        "'''\n"
        "with tempfile.NamedTemporaryFile('w', suffix='.py') as file:\n"
        "    file.write(code); file.flush()\n"
        "    print(subprocess.check_output([sys.executable, file.name], text=True))\n"
    )
    assert done.stdout.split() == ["8"]


def test_functions_of_a_main_module_that_is_run_by_name(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import ramet\n"
        "def double(x): return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    with ramet.Zygote() as zygote:\n"
        "        print(zygote.call(double, 4))\n"
    )
    command = [sys.executable, "-m", "program"]
    assert subprocess.check_output(command, text=True, cwd=tmp_path) == "8\n"


def test_a_main_module_that_cannot_be_imported(tmp_path: Path) -> None:
    run_python("import ramet\nwith ramet.Zygote() as z: assert z.call(pow, 2, 3) == 8\n")
    program = tmp_path / "program.py"
    program.write_text(
        "import ramet\n"
        "if __name__ != '__main__': raise LookupError('not here')\n"
        "try:\n"
        "    ramet.Zygote().warm_up()\n"
        "except ramet.ZygoteError as error:\n"
        "    assert 'preloading __main__ failed' in str(error)\n"
        "    assert 'not here' in str(error)\n"
        "    print('told')\n"
    )
    assert subprocess.check_output([sys.executable, program], text=True) == "told\n"
    program.write_text("import ramet\nramet.Zygote().call(pow, 2, 3)\n")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the main module starts a zygote while it is imported by one" in done.stderr
    stdin = "import ramet\nwith ramet.Zygote() as z: print(z.call(pow, 2, 3))\n"
    assert subprocess.check_output([sys.executable], text=True, input=stdin) == "8\n"


def test_cloudpickle(zygote: Zygote) -> None:
    pytest.importorskip("cloudpickle", reason="not installed")
    offset = 3
    assert zygote.call(lambda x: x + offset, 4) == 7
    assert zygote.call(lambda: lambda x: x + offset)(4) == 7


# --- what goes wrong ----------------------------------------------------------------------------


def test_no_room_for_the_pidfd() -> None:
    run_python(
        "import errno, os, resource, ramet\n"
        "with ramet.Zygote(main=False) as zygote:\n"
        "    zygote.call(abs, -1)\n"
        "    pid = zygote.pid\n"
        "    seen = []\n"
        "    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "    free = []\n"
        "    for fd in range(1000):\n"
        "        try: os.fstat(fd)\n"
        "        except OSError: free.append(fd)\n"
        "    for room in range(6):\n"
        "        resource.setrlimit(resource.RLIMIT_NOFILE, (free[room], hard))\n"
        "        try:\n"
        "            seen.append(zygote.call(abs, -1))\n"
        "        except OSError as error:\n"
        "            seen.append(error.errno)\n"
        "        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "    assert seen == [errno.EMFILE] * 3 + [1] * 3, seen\n"
        "    assert zygote.pid == pid\n"
        "    assert zygote.call(abs, -2) == 2\n"
        "try:\n"
        "    os.waitpid(-1, 0)\n"
        "except ChildProcessError:\n"
        "    pass\n"
        "else:\n"
        "    raise AssertionError('a child is left')\n"
    )


def test_large_results_hold_no_descriptor(zygote: Zygote) -> None:
    for _ in range(2):  # then another child waits
        zygote.call(add, 1)
    before = len(os.listdir("/proc/self/fd"))
    kept = [zygote.call(bytearray, 1 << 18) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before
    kept[3][5] = 7
    assert (kept[3][5], kept[4][5]) == (7, 0)


def test_files_of_a_preload_are_not_the_childs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "opens.py").write_text(
        "import os\n"
        "files = [os.open(__file__, os.O_RDONLY) for _ in range(3)]\n"
        "print('text of a preload')\n"
        "def numbers(): return files\n"
        "def names(): return [os.readlink(f'/proc/self/fd/{file}') for file in files]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with Zygote(["opens"], main=False) as one:
        import opens  # type: ignore[import-not-found]

        assert one.call(opens.names) == ["/dev/null"] * 3
        places = one.call(targets)
        assert all(places[file] == "/dev/null" for file in one.call(opens.numbers))
    for file in opens.files:
        os.close(file)


def test_text_of_a_preload_is_printed_once(tmp_path: Path) -> None:
    (tmp_path / "says.py").write_text("print('once')\n")
    done = run_python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import ramet\n"
        "with ramet.Zygote(['says'], main=False) as zygote:\n"
        "    for _ in range(3): zygote.call(abs, 1)\n"
    )
    assert done.stdout == "once\n"


@pytest.mark.parametrize("closed", [[0], [1], [0, 1, 2]])
def test_closed_standard_streams(tmp_path: Path, closed: list[int]) -> None:
    """They are closed in the child, too, and nothing else is in their places."""
    output = tmp_path / "output"
    run_python(
        "import os, ramet\n"
        "from tests.functions import targets\n"
        f"for fd in {closed}: os.close(fd)\n"
        "with ramet.Zygote(main=False) as zygote:\n"
        "    found = [zygote.call(targets), zygote.call(targets)]\n"
        "    zygote.call(print, 'to nobody')\n"
        f"with open({str(output)!r}, 'w') as file: print(found, file=file)\n",
        check=False,
    )
    for found in ast.literal_eval(output.read_text()):
        assert all(found.get(fd, "the listing") == "the listing" for fd in closed)


def test_classes_of_the_main_module(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import ramet\n"
        "class Mine:\n"
        "    pass\n"
        "class MyError(Exception):\n"
        "    pass\n"
        "def fail(): raise MyError('mine')\n"
        "if __name__ == '__main__':\n"
        "    with ramet.Zygote() as zygote:\n"
        "        print(type(zygote.call(Mine)).__name__)\n"
        "        try: zygote.call(fail)\n"
        "        except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.check_output([sys.executable, program], text=True)
    assert done == "Mine\nMyError mine\n"


def test_functions_of_a_main_module_that_is_no_file() -> None:
    pytest.importorskip("cloudpickle", reason="not installed")
    code = (
        "import ramet\n"
        "def seven(): return 7\n"
        "with ramet.Zygote() as zygote: print(zygote.call(seven))\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "7\n"


def test_many_arguments_of_the_program(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import ramet, sys\n"
        "def count(): return len(sys.argv)\n"
        "if __name__ == '__main__':\n"
        "    with ramet.Zygote() as zygote: print(zygote.call(count))\n"
    )
    command = [sys.executable, str(program), *["x" * 100] * 5000]
    assert subprocess.check_output(command, text=True) == "5001\n"


def test_bad_descriptors_cost_the_zygote_nothing(zygote: Zygote) -> None:
    zygote.warm_up()
    pid = zygote.pid
    with pytest.raises(OSError, match="Bad file descriptor"):
        zygote.using(fds={5: 999}).call(add, 1)
    with pytest.raises(ValueError, match="at most 64"):
        zygote.using(fds=dict.fromkeys(range(3, 103), 0)).call(add, 1)
    for fds in ({1 << 32: 0}, {-1: 0}, {"a": 0}, {5: 1 << 32}):
        with pytest.raises(ValueError, match="descriptor"):
            zygote.using(fds=fds)  # type: ignore[arg-type]
    assert zygote.call(add, 1) == 2
    assert zygote.pid == pid


def test_a_handler_that_raises_in_the_middle(zygote: Zygote) -> None:
    """The child that comes after all is not left behind."""
    zygote.warm_up()
    assert zygote.pid is not None
    pid = zygote.pid

    def interrupt(*_: object) -> None:
        os.kill(pid, signal.SIGCONT)
        raise LookupError("a handler")

    with stopped(pid, interrupt), pytest.raises(LookupError):
        zygote.call(time.sleep, 60)
    assert zygote.call(add, 1) == 2
    zygote.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, 0)


def test_a_handler_that_needs_the_zygote(zygote: Zygote) -> None:
    zygote.warm_up()
    assert zygote.pid is not None
    pid = zygote.pid
    told = []

    def use(*_: object) -> None:
        try:
            zygote.close()
        except RuntimeError as error:
            told.append(str(error))
        os.kill(pid, signal.SIGCONT)

    with stopped(pid, use):
        assert zygote.call(add, 1) == 2
    assert told == ["this thread is in the middle of a request to the zygote"]


def test_results_are_asked_for_more_than_once(zygote: Zygote) -> None:
    with zygote.start(add, 1) as child:
        pass
    assert child.result() == child.result() == 2
    bad: FunctionChild[Any]
    dead: FunctionChild[Any]
    with zygote.start(fail, "lookup") as bad, zygote.start(os._exit, 3) as dead:
        pass
    for _ in range(2):
        with pytest.raises(LookupError):
            bad.result()
        with pytest.raises(ChildDiedError):
            dead.result()
    slow = zygote.start(nap)
    waiters = [Background(slow.result) for _ in range(8)]
    assert [waiter.result() for waiter in waiters] == ["slept"] * 8


def test_pid_namespaces_are_for_children(zygote: Zygote) -> None:
    with pytest.raises(ValueError, match="NEWPID: the first process"):
        Zygote(flags=CloneFlags.NEWPID)


def test_children_are_not_told_to_use_one_thread(zygote: Zygote) -> None:
    assert not [name for name in zygote.call(state)["env"] if name.endswith("_NUM_THREADS")]


def test_in_a_cycle() -> None:
    done = run_python(
        "import gc, ramet\n"
        "class Holder: pass\n"
        "holder = Holder()\n"
        "holder.zygote = ramet.Zygote(main=False)\n"
        "holder.zygote.holder = holder\n"
        "holder.zygote.call(abs, 1)\n"
        "del holder\n"
        "gc.collect()\n"
    )
    assert done.stderr == ""


def test_exceptions_that_say_nothing(zygote: Zygote) -> None:
    with pytest.raises(RuntimeError, match="MuteError"):
        zygote.call(fail, "mute")


def test_exceptions_by_value(zygote: Zygote) -> None:
    pytest.importorskip("cloudpickle", reason="not installed")

    class LocalError(Exception):
        pass

    def raise_it() -> None:
        raise LocalError("by value")

    with pytest.raises(Exception, match="by value") as caught:
        zygote.call(raise_it)
    assert type(caught.value).__name__ == "LocalError"


def test_map_with_options(zygote: Zygote) -> None:
    assert list(zygote.using(nice=2).map(os.nice, [0, 0, 0])) == [2, 2, 2]


# --- its life -----------------------------------------------------------------------------------


def test_killed_when_idle(zygote: Zygote) -> None:
    zygote.warm_up()
    first = zygote.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: zygote._process is None or zygote._process.poll() is not None)
    assert zygote.call(add, 1) == 2
    assert zygote.pid != first


def test_killed_in_flight(zygote: Zygote) -> None:
    """What is asked at that moment fails, with the reason; children go on."""
    zygote.warm_up()
    assert zygote.pid is not None
    os.kill(zygote.pid, signal.SIGSTOP)
    caller = Background(lambda: zygote.call(add, 1))
    time.sleep(0.05)
    os.kill(zygote.pid, signal.SIGKILL)
    with pytest.raises(ZygoteError, match="the zygote was killed by SIGKILL"):
        caller.result()
    with zygote.start(time.sleep, 0.1) as child:
        os.kill(zygote.pid, signal.SIGKILL)
        assert child.result() is None
    assert zygote.call(add, 1) == 2


def test_closed() -> None:
    zygote = Zygote(main=False)
    assert zygote.pid is None
    with zygote.start(time.sleep, 0.1) as child:
        pid = zygote.pid
        zygote.close()
        zygote.close()
        assert child.result() is None
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert zygote.call(add, 1) == 2  # starts another
    zygote.close()


def test_dropped() -> None:
    zygote = Zygote(main=False)
    zygote.warm_up()
    pid = zygote.pid
    assert pid is not None
    del zygote
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_ends_with_us() -> None:
    """Also if we are killed."""
    done = run_python(
        "import os, signal, ramet\n"
        "zygote = ramet.Zygote(main=False)\n"
        "zygote.warm_up()\n"
        "print(zygote.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        check=False,
    )
    pid = int(done.stdout)
    until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_in_a_fork(zygote: Zygote) -> None:
    zygote.warm_up()

    def use() -> None:
        assert zygote.call(ids)[1] == os.getpid()
        zygote.close()

    in_fork(use)
    assert zygote.call(add, 1) == 2


def check(condition: bool) -> None:
    assert condition


def test_in_a_fork_while_others_use_it(zygote: Zygote) -> None:
    zygote.warm_up()
    with zygote._lock:  # as another thread would
        in_fork(lambda: check(zygote.call(add, 4) == 5))


def test_a_zygote_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with Zygote(["slow"], main=False, timeout=0.5) as slow:
        with pytest.raises(ZygoteError, match=r"not ready after 0\.5 seconds"):
            slow.warm_up()
        assert slow.pid is None


def test_results_of_children_whose_status_is_lost(zygote: Zygote) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert zygote.call(add, 1) == 2
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_manager_of_multiprocessing() -> None:
    run_python(
        "import multiprocessing, operator, ramet\n"
        "context = multiprocessing.get_context('spawn')\n"
        "with context.Manager() as manager, ramet.Zygote(main=False) as zygote:\n"
        "    shared = manager.list([1])\n"
        "    zygote.call(operator.setitem, shared, 0, 2)\n"
        "    assert list(shared) == [2]\n"
    )


def test_not_to_be_pickled(zygote: Zygote) -> None:
    with pytest.raises(TypeError, match="make one where it is used"):
        pickle.dumps(zygote)


def test_many_threads(zygote: Zygote) -> None:
    def work(number: int) -> bool:
        return all(zygote.call(add, number, i) == number + i for i in range(25))

    workers = [Background(lambda n=n: work(n)) for n in range(8)]  # type: ignore[misc]
    assert all(worker.result() for worker in workers)


def test_5_000_tasks(zygote: Zygote) -> None:
    """Neither side keeps anything, whatever becomes of them."""
    for _ in range(2):  # then another child waits
        zygote.call(add, 1)
    before = len(os.listdir("/proc/self/fd"))
    assert zygote.pid is not None
    resident = _resident(zygote.pid)

    def work(first: int) -> None:
        for i in range(first, first + 1250):
            if i % 50 == 0:
                with pytest.raises(ChildDiedError):
                    zygote.call(os._exit, 1)
            elif i % 50 == 1:
                with pytest.raises(LookupError):
                    zygote.call(fail, "lookup")
            else:
                assert zygote.call(add, i) == i + 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(0, 5000, 1250)))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(os.listdir(f"/proc/{zygote.pid}/fd")) == 4
    assert _resident(zygote.pid) < resident + 512
    assert os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None  # the zygote runs


def _resident(pid: int) -> int:
    """KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


# --- values -------------------------------------------------------------------------------------


def test_unfinished_values() -> None:
    file = _values.new_file("test")
    fd = file.number
    with pytest.raises(_values.UnfinishedError):
        _values.load(fd)
    os.pwrite(fd, bytes(100), 0)
    with pytest.raises(_values.UnfinishedError):
        _values.load(fd)
    _values.dump({"a": 1}, fd)
    assert _values.load(fd) == {"a": 1}
    assert ramet.Zygote is Zygote
