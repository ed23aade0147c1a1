"""Not run, but checked by mypy: the types that users get."""

from __future__ import annotations

import selectors
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from resource import struct_rusage
from typing import assert_type

import ramet
from ramet import Child, CloneFlags, ExitStatus, Support, Thread, lowlevel
from ramet.futures import CloneExecutor


def start(fn: int, directory: Path, selector: selectors.BaseSelector) -> None:
    task = ramet.clone(fn)
    assert_type(task, Child | Thread)
    assert isinstance(task, Child)
    assert_type(ramet.clone(fn, bytearray(8), CloneFlags.VM | CloneFlags.VFORK), Child | Thread)
    ramet.clone(fn, None, 0x100, exit_signal=0, stack_size=ramet.DEFAULT_STACK_SIZE)
    ramet.clone(fn, ptid=bytearray(4), tls=1, ctid=bytearray(4), set_tid=(7, 1))
    ramet.clone(fn, cgroup=3)
    ramet.clone(fn, cgroup="/sys/fs/cgroup")
    ramet.clone(fn, cgroup=directory)
    with directory.open() as file:
        ramet.clone(fn, cgroup=file)
    ramet.clone(fn, None, "VM")  # type: ignore[arg-type]
    ramet.clone(fn, set_tid=7)  # type: ignore[arg-type]
    ramet.clone(fn, cgroup=1.5)  # type: ignore[arg-type]
    selector.register(task, selectors.EVENT_READ)


def use_child(child: Child) -> None:
    assert_type(child.pid, int)
    assert_type(child.pidfd, int)
    assert_type(child.fileno(), int)
    assert_type(child.poll(), ExitStatus | None)
    assert_type(child.wait(), ExitStatus)
    assert_type(child.wait(1), ExitStatus)
    assert_type(child.wait(timeout=0.5), ExitStatus)
    child.send_signal(15)
    child.terminate()
    child.kill()
    child.close()
    with child as same:
        assert_type(same, Child)
    child.pid = 1  # type: ignore[misc]
    child.wait("1")  # type: ignore[arg-type]


def use_status(status: ExitStatus) -> None:
    assert_type(status.code, int | None)
    assert_type(status.signal, int | None)
    assert_type(status.returncode, int)
    assert_type(status.core_dumped, bool)
    assert_type(status.rusage, struct_rusage | None)
    assert_type({status: 1}, dict[ExitStatus, int])


def use_thread(thread: Thread) -> None:
    assert_type(thread.tid, int)
    assert_type(thread.pidfd, int)
    assert_type(thread.is_alive(), bool)
    assert_type(thread.join(), int | None)
    assert_type(thread.join(0.5), int | None)
    with thread as same:
        assert_type(same, Thread)


def use_popen() -> None:
    with ramet.Popen(["true"], rlimits={7: (1, 2)}, user="nobody", text=True) as process:
        assert_type(process.wait(), int)
        assert_type(process.exit_status, ExitStatus | None)
    ramet.Popen(["true"], nice="low")  # type: ignore[arg-type]
    ramet.Popen(["true"], no_such_option=1)  # type: ignore[call-arg]


def use_functions() -> None:
    def length(text: str, *, twice: bool = False) -> int:
        return len(text) * (1 + twice)

    with CloneExecutor(2, preload=["json"], timeout=3, nice=1) as executor:
        assert_type(executor.submit(length, "a", twice=True), Future[int])
        executor.submit(length, 3)  # type: ignore[arg-type]
    CloneExecutor(nice="low")  # type: ignore[arg-type]
    assert_type(ramet.isolated(length, timeout=3, rlimits={7: 50})("a"), int)
    assert_type(ramet.isolated(timeout=3)(length)("a", twice=True), int)
    ramet.isolated(length)(3)  # type: ignore[arg-type]
    ramet.isolated(length, no_such_option=3)  # type: ignore[call-overload]


def use_flags() -> None:
    assert_type(CloneFlags.VM | CloneFlags.FS, CloneFlags)
    assert_type(CloneFlags.VM.since, str)
    assert_type(CloneFlags.VM.summary, str)
    assert_type(ramet.flag_rules(CloneFlags.VM), tuple[str, ...])


def use_probe() -> None:
    support = ramet.probe()
    assert_type(support, Support)
    assert_type(support.clone3, bool)
    assert_type(support.flags, CloneFlags)
    assert_type(support.refused, Mapping[CloneFlags, str])
    assert_type(support.fields, frozenset[str])


def use_lowlevel(fn: int) -> None:
    assert_type(lowlevel.clone(fn, 0, 17, 1 << 20), int)
    assert_type(lowlevel.clone3(fn, 0, stack=1 << 20, stack_size=64, set_tid=[1]), int)
    assert_type(lowlevel.CLONE_ARGS_SIZE_VER2, int)
    lowlevel.clone3(fn, 0, 17)  # type: ignore[call-arg]
    assert_type(ramet.get_include(), str)
    assert_type(ramet.get_library_dir(), str)
