"""Filters of system calls, each call made inside and outside."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import ramet
from ramet.sandbox import _seccomp
from ramet.sandbox._seccomp import DENIED, check_names, filter_program
from tests.childlib import number
from tests.isolated import run_python
from tests.native.toolchain import compiler

try:
    _seccomp.libseccomp()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)

HIGH = 1 << 32  # a bit that the kernel does not look at


def results(
    calls: Iterable[tuple[object, ...]],
    *,
    inside: bool = True,
    allow: Iterable[str] = (),
    deny: Iterable[str] = (),
) -> list[int]:
    """Make system calls in a process of their own; for each its errno, or 0."""
    code = (
        "import ctypes, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.syscall.restype = ctypes.c_long\n"
        "found = []\n"
        f"for call in {list(calls)}:\n"
        "    ctypes.set_errno(0)\n"
        "    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in call]\n"
        "    result = libc.syscall(*words)\n"
        "    found.append(ctypes.get_errno() if result == -1 else 0)\n"
        "print(found)\n"
    )  # fmt: skip
    made = filter_program(allow=allow, deny=deny) if inside else None

    def confine(program: ramet.Program) -> None:
        program.set_no_new_privs()
        if made is not None:
            program.seccomp(made)

    reader, writer = os.pipe()
    with open(reader, "rb") as file:
        child = ramet.spawn([sys.executable, "-c", code], fds={1: writer}, before_exec=confine)
        os.close(writer)
        with child:
            said = file.read()
    assert child.wait().code == 0
    found = ast.literal_eval(said.decode())
    assert isinstance(found, list)
    return found


def call(name: str, *args: object) -> tuple[object, ...]:
    return (number(name), *args)


def test_what_is_denied() -> None:
    """With arguments that are bad in any case. (What vhangup would do needs none.)"""
    names = sorted(name for name in DENIED if name in ramet._syscalls.NUMBERS and name != "vhangup")
    bad = (-1, -1, -1, -1, -1, -1)
    calls = [call(name, *bad) for name in names]
    assert dict(zip(names, results(calls), strict=True)) == dict.fromkeys(names, errno.EPERM)


PROBES = {
    "unshare": (call("unshare", 0), 0),
    "ptrace": (call("ptrace", 0, 0, 0, 0), 0),  # PTRACE_TRACEME
    "process_vm_readv": (call("process_vm_readv", 0, 0, 0, 0, 0, 0), 0),
    "io_uring": (call("io_uring_setup", 0, 0), errno.EFAULT),
    "userfaultfd": (call("userfaultfd", -1), errno.EINVAL),
    "keyctl": (call("keyctl", 0, -3, 0, 0, 0), 0),  # of the session keyring
    "clone with a namespace": (call("clone", 0x1000_0000 | 0x200, 0, 0, 0, 0), errno.EINVAL),
    "TIOCSTI": (call("ioctl", -1, 0x5412, 0), errno.EBADF),
    "TIOCSTI, as the kernel sees it": (call("ioctl", -1, 0x5412 | HIGH, 0), errno.EBADF),
    "F_SETLEASE": (call("fcntl", -1, 1024, 0), errno.EBADF),
    "F_SETDELEG": (call("fcntl", -1, 1040, 0), errno.EBADF),
    "personality": (call("personality", 0x40000), 0),
    "personality, as the kernel sees it": (call("personality", 0x40000 | HIGH), 0),
    "vsock": (call("socket", 40, 1, 0), None),
    "clone3": (call("clone3", 0, 0), errno.EINVAL),
    "a call that there is not": (((1 << 20) - 1,), errno.ENOSYS),
}
INSIDE = {
    "personality": errno.ENOSYS,
    "personality, as the kernel sees it": errno.ENOSYS,
    "vsock": errno.EAFNOSUPPORT,
    "clone3": errno.ENOSYS,
    "a call that there is not": errno.ENOSYS,
}


@pytest.mark.parametrize("name", PROBES)
def test_probes(name: str) -> None:
    """Each does something else outside: so it is the filter that refuses it."""
    probe, outside = PROBES[name]
    if outside is not None:
        assert results([probe], inside=False) == [outside]
    assert results([probe]) == [INSIDE.get(name, errno.EPERM)]


def test_what_is_allowed() -> None:
    calls = [
        call("getpid"), call("personality", 0xFFFF_FFFF), call("socket", 2, 1, 0),
        call("socket", 1, 1, 0), call("fcntl", 0, 1, 0), call("memfd_create", b"x", 0),
        call("landlock_create_ruleset", 0, 0, 1), call("pidfd_open", os.getpid(), 0),
        call("close_range", 90, 99, 0),
    ]  # fmt: skip
    inside, outside = results(calls), results(calls, inside=False)
    assert inside == outside
    assert not any(outside[:5])


def test_threads_and_children() -> None:
    run_python(
        "import ramet, sys\n"
        "from ramet.sandbox._seccomp import filter_program\n"
        "code = 'import subprocess, threading; t = threading.Thread(target=print); t.start();"
        't.join(); print(subprocess.run(["true"]).returncode)\'\n'
        "def confine(program):\n"
        "    program.set_no_new_privs()\n"
        "    program.seccomp(filter_program())\n"
        "with ramet.spawn([sys.executable, '-c', code], before_exec=confine) as child: pass\n"
        "assert child.wait().code == 0\n"
    )


def test_allow_and_deny() -> None:
    calls = [call("unshare", 0), call("getppid"), call("clone3", 0, 0)]
    assert results(calls, allow=["unshare", "clone3"], deny=["getppid"]) == [
        0, errno.EPERM, errno.EINVAL,
    ]  # fmt: skip
    conditional = ["ioctl", "socket", "clone3"]
    probes = [call("ioctl", -1, 1, 0), call("socket", 2, 1, 0), call("clone3", 0, 0)]
    assert results(probes, deny=conditional) == [errno.EPERM] * 3
    probes = [call("ioctl", -1, 0x5412, 0), call("personality", 0x40000)]
    assert results(probes, allow=["ioctl", "personality"]) == [errno.EBADF, 0]


@pytest.mark.parametrize("kind", ["allow", "deny"])
def test_bad_names(kind: str) -> None:
    with pytest.raises(ValueError, match="no system call 'no_such_call'"):
        filter_program(**{kind: ["no_such_call"]})
    with pytest.raises(TypeError, match="several names"):
        filter_program(**{kind: "unshare"})
    with pytest.raises(ValueError, match="allowed and denied: getpid"):
        filter_program(allow=["getpid"], deny=["getpid"])


def test_names_of_other_architectures() -> None:
    assert check_names(["open", "socketcall", "mmap2"]) == {"open", "socketcall", "mmap2"}
    filter_program(deny=["open", "socketcall"])


def test_it_is_made_once() -> None:
    assert filter_program() is filter_program()
    assert len(filter_program()) % 8 == 0


def test_other_architectures_end_the_process(tmp_path: Path) -> None:
    """A system call of 32 bits, as x86-64 has them: their numbers mean other calls."""
    if os.uname().machine != "x86_64":
        pytest.skip("only x86-64 has int 0x80")
    source = 'int main(void){int r;__asm__ volatile("int $0x80":"=a"(r):"a"(20));return r<0;}'
    program = f"{tmp_path}/int80"
    subprocess.run(
        [compiler("x86_64"), "-xc", "-", "-o", program], input=source.encode(), check=True
    )
    assert subprocess.run([program], check=False).returncode == 0

    def confine(steps: ramet.Program) -> None:
        steps.set_no_new_privs()
        steps.seccomp(filter_program())

    with ramet.spawn([program], before_exec=confine) as child:
        assert child.wait().signal is not None


def test_without_libseccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is an error, and no sandbox without a filter."""
    monkeypatch.setattr(_seccomp, "_LIBRARY", "no-such-library.so")
    _seccomp.libseccomp.cache_clear()
    with pytest.raises(RuntimeError, match="need libseccomp"):
        filter_program(allow=["acct"])
