"""Python in sandboxes: functions and source in children of a zygote that lives there."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramet import ExitStatus, ZygoteError, _values
from ramet.sandbox import Bind, CallError, Devices, File, Overlay, Proc, Sandbox, Symlink, Tmpfs
from ramet.sandbox._run import Record, Report
from ramet.sandbox._verdict import Verdict
from ramet.sandbox._watch import Watch
from tests.waiting import children, in_fork, until


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(python=True, preload=["numpy"], wall_time=60, env={"LANG": "C.UTF-8"}) as made:
        yield made


def value(verdict: Verdict) -> Any:
    assert verdict.ok, verdict
    return verdict.value


def run(box: Sandbox, source: str, **values: Any) -> Any:
    return value(box.run_python(textwrap.dedent(source), values))


# --- what comes back ------------------------------------------------------------------------------


def test_a_function(box: Sandbox) -> None:
    assert box.call(divmod, 17, 5) == (3, 2)
    assert box.call(int, "ff", base=16) == 255


def test_an_interpreter_that_was_called_by_a_path_with_dots() -> None:
    directory, name = os.path.split(sys.executable)
    python = f"{directory}/../{os.path.basename(directory)}/{name}"
    source = "from ramet import Sandbox\nwith Sandbox(python=True) as box: print(box.call(abs, -3))"
    assert subprocess.check_output([python, "-c", source]) == b"3\n"


def test_arrays_go_and_come(box: Sandbox) -> None:
    array = np.arange(1 << 20, dtype="f8")
    found = box.call(np.multiply, array, 2)
    assert (found == array * 2).all()


def test_source(box: Sandbox) -> None:
    verdict = box.run_python(
        "import sys\nprint(sys.stdin.read() * n)\nprint('bad', file=sys.stderr)\n{'n': n}",
        {"n": 2},
        input=b"ab",
    )
    assert verdict.ok
    assert (verdict.stdout, verdict.stderr, verdict.value) == (b"abab\n", b"bad\n", {"n": 2})
    assert verdict.peak_memory
    assert verdict.wall_time > 0
    assert '"value": {"n": 2}' in verdict.to_json()


def test_source_without_a_value(box: Sandbox) -> None:
    assert run(box, "x = 3") is None
    assert run(box, "") is None
    assert run(box, "def f(): return __name__\nf()") == "__main__"


def test_what_is_raised(box: Sandbox) -> None:
    verdict = box.run_python("def f():\n    return 1 / 0\nf()")
    assert (verdict.reason, verdict.exit_code, verdict.ok) == ("raised", 1, False)
    assert verdict.error is not None
    lines = verdict.error.splitlines()
    assert lines[1].startswith('  File "<sandbox>", line 3')
    assert "return 1 / 0" in verdict.error
    assert lines[-1] == "ZeroDivisionError: division by zero"
    with pytest.raises(CallError, match="invalid literal") as raised:
        box.call(int, "x")
    assert raised.value.verdict.reason == "raised"


def test_what_is_no_data(box: Sandbox) -> None:
    verdict = box.run_python("object()")
    assert verdict.reason == "raised"
    assert "a result is data: no object" in (verdict.error or "")


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("raise SystemExit", 0),
        ("import sys; sys.exit(3)", 3),
        ("raise SystemExit('words')", 1),
        ("import os; os._exit(0)", 0),
        ("import os; os._exit(7)", 7),
    ],
)
def test_other_ends(box: Sandbox, source: str, code: int) -> None:
    verdict = box.run_python(source)
    assert (verdict.reason, verdict.exit_code, verdict.value) == ("exited", code, None)
    assert not verdict.ok
    assert verdict.error == "it has ended without returning"
    assert verdict.stderr == (b"words\n" if "words" in source else b"")


def test_a_signal(box: Sandbox) -> None:
    verdict = box.run_python("import ctypes; ctypes.string_at(0)")
    assert (verdict.reason, verdict.signal) == ("signalled", signal.SIGSEGV)
    with pytest.raises(CallError, match="signalled, signal 11"):
        raise CallError(verdict)


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "policy", "source"),
    [
        ("timeout", {"wall_time": 0.3}, "import time; time.sleep(1000)"),
        ("output", {"output_size": 1000}, "while True: print('x')"),
        ("output", {"output_size": 1000}, "'x' * 2000"),
        ("cpu", {"cpu_time": 0.3}, "while True: pass"),
        ("memory", {"memory": 150 << 20, "optional": ["memory", "swap"]},
         "x = b'x' * 300_000_000\nimport time; time.sleep(1000)"),
    ],
)  # fmt: skip
def test_limits(reason: str, policy: dict[str, Any], source: str) -> None:
    with Sandbox(python=True, **policy) as box:
        for _ in range(2):
            verdict = box.run_python(source)
            assert (verdict.reason, verdict.shell_status) == (reason, 124)
        assert run(box, "1") == 1


def test_timeout_of_one_call(box: Sandbox) -> None:
    verdict = box.run_python("while True: pass", timeout=0.2)
    assert (verdict.reason, verdict.signal) == ("timeout", signal.SIGKILL)


def test_each_call_has_its_own_processes() -> None:
    source = """
        import os, time
        made = 0
        try:
            while made < 20:
                if os.fork() == 0:
                    time.sleep(1000)
                made += 1
        except BlockingIOError:
            pass
        made
    """
    with (
        Sandbox(python=True, processes=4) as box,
        ThreadPoolExecutor(3) as pool,
    ):
        assert list(pool.map(lambda _: run(box, source), range(6))) == [3] * 6


def test_size_of_files() -> None:
    with Sandbox(python=True, file_size=10_000) as box:
        verdict = box.run_python("with open('/tmp/x', 'wb') as f: f.write(bytes(20_000))")
        assert "File too large" in (verdict.error or "")
        verdict = box.run_python("'x' * 20_000")
        assert (verdict.reason, verdict.value) == ("raised", None)
        assert "File too large" in (verdict.error or "")


# --- each call is for itself ----------------------------------------------------------------------


def test_nothing_is_left_for_the_next(box: Sandbox) -> None:
    for _ in range(2):
        found = run(
            box,
            """
            import os
            found = [os.path.exists(path) for path in ("/tmp/x", "/dev/shm/x")]
            for path in ("/tmp/x", "/dev/shm/x"):
                open(path, "x").close()
            os.getpid(), [name for name in os.listdir("/proc") if name.isdigit()], found
            """,
        )
        assert found == (1, ["1"], [False, False])


def test_no_memory_is_shared(box: Sandbox) -> None:
    shared = '[line for line in open("/proc/self/maps") if " rw-s " in line]'
    for _ in range(3):  # also one that was ordered ahead
        assert run(box, shared) == []


def test_locks_of_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are in memory that processes share; here each call has its own."""
    tmp_path.chmod(0o755)
    (tmp_path / "locks.py").write_text(
        textwrap.dedent("""
            import mmap
            import multiprocessing
            import tempfile

            lock = multiprocessing.get_context("fork").Lock()
            memory = mmap.mmap(-1, 100)
            memory[:5] = b"ready"
            with tempfile.TemporaryFile() as file:
                file.truncate(5)
                file.flush()
                beyond = mmap.mmap(file.fileno(), 5)
                file.truncate(0)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    files = {str(tmp_path): Bind(tmp_path)}
    source = """
        import locks
        found = locks.lock.acquire(timeout=1), locks.memory[:5]
        locks.memory[:5] = b"taken"
        found
    """
    with Sandbox(python=True, files=files, preload=["locks"]) as box:
        assert [run(box, source) for _ in range(2)] == [(True, b"ready")] * 2


def test_what_lies_in_what_is_fresh(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("ours")
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer" / "file").write_text("below")
    tmp_path.chmod(0o755)
    files: dict[str, Any] = {
        "/fresh": Tmpfs(mode=0o777),
        "/fresh/data": Bind(tmp_path / "data"),
        "/fresh/one": Bind(tmp_path / "data" / "file"),
        "/fresh/text": File(b"made"),
        "/fresh/link": Symlink("text"),
        "/fresh/dev": Devices(),
        "/fresh/proc": Proc(),
        "/fresh/deep/tmp": Tmpfs(mode=0o777),
        "/layer": Overlay(tmp_path / "layer"),
        "/fresh/layer": Overlay(tmp_path / "layer"),
    }
    source = """
        import os
        found = sorted(os.listdir("/fresh"))
        found += [open(f"/fresh/{path}").read() for path in ("data/file", "one", "text", "link")]
        found += [open(f"{path}/file").read() for path in ("/layer", "/fresh/layer")]
        found += [os.path.basename(os.readlink("/fresh/proc/self"))]
        assert os.stat("/fresh/dev/null").st_rdev == os.stat("/dev/null").st_rdev
        os.mkdir("/fresh/new"), os.mkdir("/fresh/deep/tmp/x")
        open("/fresh/dev/shm/x", "w").close()
        writable = []
        for path in ("/fresh/data", "/layer", "/fresh/layer", "/fresh/dev"):
            try:
                os.mkdir(f"{path}/new")
                writable.append(path)
            except OSError:
                pass
        found, writable
    """
    for directory in (tmp_path / "layer", tmp_path / "data"):
        directory.chmod(0o777)
    with Sandbox(python=True, files=files) as box:
        for _ in range(3):
            found, writable = run(box, source)
            assert found == [
                *("data", "deep", "dev", "layer", "link", "one", "proc", "text"),
                *("ours", "ours", "made", "made", "below", "below", "1"),
            ]
            assert writable == ["/layer", "/fresh/layer"]
    assert os.listdir(tmp_path / "layer") == ["file"]


def test_confined(box: Sandbox) -> None:
    fields = run(
        box,
        """
        dict(line.split(":", 1) for line in open("/proc/self/status"))
        """,
    )
    assert fields["Uid"].split() == ["1000"] * 4
    assert fields["Groups"].strip() == ""
    assert {int(fields[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert (fields["NoNewPrivs"].strip(), fields["Seccomp"].strip()) == ("1", "2")


def test_user_0() -> None:
    source = """
        import os
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        os.getuid(), os.getgid(), int(status["CapEff"], 16), int(status["CapBnd"], 16)
    """
    with Sandbox(python=True, uid=0, gid=0) as box:
        assert run(box, source) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "source",
    [
        "import os; os.kill(0, 9)",
        "import os, signal; signal.signal(15, lambda *_: None); os.kill(-1, 9)",
        "import os; [os.kill(pid, 9) for pid in range(2, 100)]",
        "import os; os.setpriority(os.PRIO_PGRP, 0, 15)",
    ],
)
def test_nobody_else_is_reached(box: Sandbox, source: str) -> None:
    ours = os.nice(0)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(run, box, "import time, os; time.sleep(0.3); os.nice(0)")
        process = box._zygote()._process
        assert process is not None
        box.run_python(source)
        assert other.result() == ours
        assert box._zygote()._process is process


def test_environment(box: Sandbox) -> None:
    assert run(box, "import os; dict(os.environ)") == {"LANG": "C.UTF-8"}


def test_secrets_stay_here(box: Sandbox) -> None:
    ours = bytes(multiprocessing.current_process().authkey)
    source = "import multiprocessing; bytes(multiprocessing.current_process().authkey)"
    assert run(box, source) != ours


def test_descriptors(box: Sandbox) -> None:
    """It has its streams and the file for its result, and none of the zygote's."""
    source = """
        import os
        found = {}
        for fd in range(100):
            try:
                found[str(fd)] = os.readlink(f"/proc/self/fd/{fd}")
            except OSError:
                pass
        found
    """
    found = run(box, source)
    assert found.keys() == {"0", "1", "2", "3"}
    assert "ramet-outcome" in found["3"]


def test_what_it_leaves_running_ends(box: Sandbox) -> None:
    source = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1000)
            os._exit(0)
        os.wait()
        "left"
    """
    assert run(box, source) == "left"
    process = box._zygote()._process
    assert process is not None
    init = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: len(init.read_text().split()) <= 2)  # the zygote, and a child ordered ahead
    below = [
        Path(f"/proc/{pid}/task/{pid}/children").read_text() for pid in init.read_text().split()
    ]
    assert below == [""] * len(below)


# --- forgeries ------------------------------------------------------------------------------------

EVIL = b"cos\nsystem\n(S'touch %s'\ntR."


@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_a_result_is_not_unpickled(box: Sandbox, tmp_path: Path, size: int) -> None:
    """Whatever it writes to whatever it has."""
    trace = tmp_path / "trace"
    verdict = box.run_python(
        """if True:
        import os
        for fd in range(3, 1024):
            try:
                os.pwrite(fd, evil, 0)
                os.pwrite(fd, finished + evil, 0)
                os.ftruncate(fd, len(evil) + size)
            except OSError:
                pass
        os._exit(0)
        """,
        {"evil": EVIL % os.fsencode(trace), "finished": _values._DONE, "size": size},
    )
    assert (verdict.reason, verdict.value) == ("exited", None)
    assert verdict.error == "it has ended without returning"
    assert not trace.exists()


def test_nor_is_what_the_interpreter_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is preloaded may be anybody's, too."""
    trace, package = tmp_path / "trace", tmp_path / "package"
    package.mkdir()
    (package / "evil.py").write_text(
        textwrap.dedent(f"""
            import os
            import sys
            from ramet import _zygote_main

            class Evil:
                def __reduce__(self):
                    return os.system, ("touch {trace}",)

            _zygote_main._work = lambda *_: ("value", Evil())
        """)
    )
    monkeypatch.syspath_prepend(package)
    files = {str(package): Bind(package)}
    with Sandbox(python=True, files=files, preload=["evil"]) as box:
        verdict = box.run_python("1")
    assert verdict.reason == "start_failed"
    assert "nothing that makes sense" in (verdict.error or "")
    assert not trace.exists()


@pytest.mark.parametrize("where", ["ramet/__init__.py", "json.py", ".local/usercustomize.py"])
def test_what_calls_write_is_not_imported(tmp_path: Path, where: str) -> None:
    """By the next interpreter, in which it would be outside of them."""
    tmp_path.chmod(0o777)
    user = f".local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/"
    source = """
        import os
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write("open('/shared/trace', 'w')")
    """
    policy: dict[str, Any] = {"cwd": "/shared", "env": {"HOME": "/shared"}}
    for _ in range(2):
        with Sandbox(
            python=True, files={"/shared": Bind(tmp_path, writable=True)}, **policy
        ) as box:
            run(box, source, path=f"/shared/{where.replace('.local/', user)}")
    assert not (tmp_path / "trace").exists()


def test_a_forged_value_is_data(box: Sandbox) -> None:
    """It may say what it likes, as by returning it."""
    source = """
        import os
        from ramet.sandbox import _data
        for part in _data.encode({"value": [1, 2]}):
            os.write(3, part)
        os._exit(0)
    """
    assert run(box, source) == [1, 2]


def test_a_result_that_grows(box: Sandbox) -> None:
    verdict = box.run_python("import os; os.ftruncate(3, 1 << 40); os._exit(0)")
    assert verdict.reason == "output"
    assert f"{1 << 40} bytes" in (verdict.error or "")


def test_descriptors_in_flight(tmp_path: Path) -> None:
    """A user may have no more than some: with too many the zygote can't send the pidfd."""
    tmp_path.chmod(0o777)
    source = """
        import array, socket, time
        pairs = [socket.socketpair() for _ in range(8)]
        held = array.array("i", [1] * 200)
        try:
            for pair in pairs:
                pair[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, held)])
        except OSError:
            open("/here/done", "w").close()
        time.sleep(1000)
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
    try:
        files = {"/here": Bind(tmp_path, writable=True)}
        with Sandbox(python=True, files=files) as box, ThreadPoolExecutor(1) as pool:
            box.warm_up()
            flood = pool.submit(box.run_python, textwrap.dedent(source), timeout=5)
            until((tmp_path / "done").exists)
            found = [box.run_python("1") for _ in range(3)]
            assert flood.result().reason == "timeout"
            assert run(box, "1") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    # One was ordered ahead, before that.
    assert {each.reason for each in found} <= {"exited", "start_failed"}
    assert found[-1].reason == "start_failed"


# --- its life -------------------------------------------------------------------------------------


def test_the_zygote_dies(box: Sandbox) -> None:
    with ThreadPoolExecutor(1) as pool:
        began = threading.Event()

        def wait() -> Verdict:
            began.set()
            return box.run_python("import time; time.sleep(1000)")

        future = pool.submit(wait)
        began.wait()
        time.sleep(0.1)
        process = box._zygote()._process
        assert process is not None
        process.kill()
        verdict = future.result()
    assert (verdict.reason, verdict.signal) == ("signalled", signal.SIGKILL)
    until(process.poll)
    assert run(box, "1") == 1


def test_a_child_that_was_ordered_ahead_dies() -> None:
    with Sandbox(python=True, cpu_time=60) as box:  # with a group, where that can be had
        for _ in range(3):
            assert run(box, "1") == 1
        process = box._zygote()._process
        assert process is not None
        below = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        zygote, ahead = until(lambda: [*map(int, below.read_text().split())][:2])
        os.kill(ahead, signal.SIGKILL)
        until(lambda: str(ahead) not in below.read_text().split())
        assert run(box, "1") == 1
        assert str(zygote) in below.read_text().split()


def test_close_and_again() -> None:
    before = children()
    box = Sandbox(python=True)
    assert children() == before
    with box:
        box.warm_up()
        assert len(children() - before) == 1
    assert children() == before
    assert box.call(abs, -1) == 1
    box.close()
    assert children() == before


def test_dropped() -> None:
    before = children()
    box = Sandbox(python=True)
    box.warm_up()
    del box
    gc.collect()
    until(lambda: children() == before)


def test_in_a_fork(box: Sandbox) -> None:
    def use() -> None:
        assert box.call(abs, -1) == 1
        box.close()

    assert run(box, "1") == 1
    in_fork(use)
    assert run(box, "2") == 2


def test_several_threads(box: Sandbox) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: box.call(abs, -n), range(60))) == list(range(60))


def test_interrupted(box: Sandbox) -> None:
    class Interruption(Exception):  # noqa: N818
        pass

    def handler(*_: object) -> None:
        raise Interruption

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Interruption):
            box.call(time.sleep, 1000)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert box.call(abs, -1) == 1


def reported(box: Sandbox) -> Report:
    reports = box._zygote().reports
    assert reports is not None
    return reports._report


def test_pids_come_again(box: Sandbox) -> None:
    """Also that of a call that was interrupted, of whose end nobody has asked."""
    assert run(box, "1") == 1
    report = reported(box)
    killed = ExitStatus(os.CLD_KILLED, signal.SIGKILL)
    report.others.update(dict.fromkeys(range(2, 1000), Record(0, killed)))
    for _ in range(3):
        assert run(box, "1") == 1
    report.others.clear()


def test_nothing_is_kept_of_calls_that_were_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_into_it(_: Watch) -> None:
        raise InterruptedError

    with Sandbox(python=True) as box:
        box.warm_up()
        report = reported(box)
        with monkeypatch.context() as patch:
            patch.setattr(Watch, "run", run_into_it)
            for _ in range(3):
                with pytest.raises(InterruptedError):
                    box.run_python("1")
        assert run(box, "1") == 1
        assert (report.others, report.expected) == ({}, set())


def test_all_of_it_ends_with_this_process(tmp_path: Path) -> None:
    script = """if True:
        import sys
        from ramet import Sandbox
        box = Sandbox(python=True)
        box.warm_up()
        print(box._zygote()._process.pid, flush=True)
        box.run_python("import os, time; os.fork(); time.sleep(1000)")
    """
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as ours:
        assert ours.stdout is not None
        init = int(ours.stdout.readline())
        pidfd = os.pidfd_open(init)
        until(lambda: len(Path(f"/proc/{init}/task/{init}/children").read_text().split()) >= 2)
        ours.kill()
    try:
        until(lambda: not Path(f"/proc/{init}").exists())
    finally:
        os.close(pidfd)


# --- what cannot be -------------------------------------------------------------------------------


def test_preload_fails() -> None:
    with Sandbox(python=True, preload=["no_such_module"]) as box:
        with pytest.raises(ZygoteError, match="no_such_module"):
            box.warm_up()
        verdict = box.run_function(abs, [1])
        assert verdict.reason == "start_failed"
        assert "no_such_module" in (verdict.error or "")
        assert {line.state for line in verdict.receipt} == {"planned"}


def test_no_interpreter_in_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(python=True) as box:
        monkeypatch.setattr(sys, "executable", "/no/such/python")
        assert "execve('/no/such/python'" in (box.run_function(abs, [1]).error or "")


def test_last_words_of_an_interpreter() -> None:
    library = os.path.dirname(os.__file__)
    with Sandbox(python=True, files={library: Tmpfs()}) as box:
        error = box.run_function(abs, [1]).error or ""
    assert "exited with 1" in error
    assert "encodings" in error


@pytest.mark.parametrize(
    ("policy", "word"),
    [
        ({"system": True}, "python=True"),
        ({"python": True, "files": {"/proc": Tmpfs()}}, "Proc"),
        ({"python": True, "uid_map": ((1000, 0, 1),)}, "root outside"),
        ({"python": True, "capabilities": ["cap_sys_admin"]}, "sys_admin"),
    ],
)
def test_policies_without(policy: dict[str, Any], word: str) -> None:
    if "uid_map" in policy and os.geteuid() != 0:
        pytest.skip("only root can map root")
    with pytest.raises(ValueError, match=word):
        Sandbox(**policy).call(abs, 1)


def test_root_by_another_id() -> None:
    """In a user namespace in which we are not 0, but outside of it."""
    if os.geteuid() != 0:
        pytest.skip("only root can be root outside")
    script = "from ramet import Sandbox; Sandbox(python=True).call(abs, 1)"
    command = ["unshare", "--user", "--map-user=1000", "--map-group=1000", sys.executable]
    done = subprocess.run([*command, "-c", script], capture_output=True, text=True, check=False)
    assert "ValueError: Python functions are not for a user who is root outside" in done.stderr


def test_bad_arguments(box: Sandbox) -> None:
    with pytest.raises(TypeError, match="source"):
        box.run_python(b"1")  # type: ignore[arg-type]
    with pytest.raises((TypeError, AttributeError), match="pickle"):
        box.run_function(abs, [threading.Lock()])
    with pytest.raises(TypeError, match="timeout"):
        box.run_python("1", timeout="1")  # type: ignore[arg-type]


def test_functions_of_the_main_module(monkeypatch: pytest.MonkeyPatch, box: Sandbox) -> None:
    script = """if True:
        from ramet import Sandbox
        factor = 3
        def triple(n):
            return n * factor
        with Sandbox(python=True) as box:
            print(box.call(triple, 5), box.call(lambda: "lambda"))
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("15 lambda\n", "")

    def ours() -> None:
        raise AssertionError

    ours.__module__ = "__main__"
    monkeypatch.setattr(_values, "find_cloudpickle", lambda: None)
    with pytest.raises(TypeError, match="cloudpickle"):
        box.call(ours)
