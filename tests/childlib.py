"""What children run in the tests: childlib.c, and scripts of system calls made here."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import ramet

if TYPE_CHECKING:
    from _ctypes import _CData

    Argument = int | bytes | _CData

Data = TypeVar("Data", bound="_CData")

HERE = Path(__file__).parent
SOURCE = HERE / "childlib.c"
PATH_VARIABLE = "RAMET_TEST_CHILDLIB"

AT_FDCWD = -100
FUTEX_WAIT, FUTEX_WAKE, FUTEX_WAIT_BITSET = 0, 1, 9
WALL = 0x4000_0000  # __WALL
_PATIENCE = 20  # seconds that a child waits at a gate before it goes on by itself
_CC = os.environ.get("CC", "cc").split()


# --- the library --------------------------------------------------------------------------------


def build(directory: Path) -> Path:
    """Compile childlib.c, for this process and those that it starts."""
    target = directory / "childlib.so"
    options = "-shared -nostdlib -fPIC -O1 -fno-stack-protector -ffreestanding -Wall -Werror"
    arch = HERE.parent / "src" / "native" / "arch" / platform.machine()
    command = [*_CC, *options.split(), f"-I{arch}", "-Wno-infinite-recursion"]
    subprocess.run([*command, "-o", target, SOURCE], check=True)
    os.environ[PATH_VARIABLE] = str(target)
    return target


class Library:
    """Addresses of functions ``long f(void *)``; childlib.c says what each does."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self.run = self._address("run")
        self.identity = self._address("identity")
        self.increment = self._address("increment")
        self.thread_pointer = self._address("thread_pointer")
        self.raise_signal = self._address("raise_signal")
        self.write_to_null = self._address("write_to_null")
        self.overflow = self._address("overflow")
        self.spin = self._address("spin")

    def _address(self, name: str) -> int:
        address = ctypes.cast(self._library[name], ctypes.c_void_p).value
        assert address is not None
        return address


@lru_cache(maxsize=1)
def load() -> Library:
    """Load what `build` made, here or in the process that started this one."""
    return Library(os.environ[PATH_VARIABLE])


# --- system calls -------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@lru_cache(maxsize=1)
def _numbers() -> dict[str, int]:
    preprocess = [*_CC, "-E", "-dM", "-include", "asm/unistd.h", "-xc", os.devnull]
    macros = subprocess.run(preprocess, check=True, capture_output=True, text=True).stdout
    defined = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\S+)", macros))
    return {name: int(value) for name, value in defined.items() if value.isdigit()}


def number(name: str) -> int:
    """The number of a system call."""
    return _numbers()[name]


def syscall(name: str, *args: int) -> int:
    """Make a system call in this process."""
    words = [ctypes.c_long(arg) for arg in args]
    result = int(_libc.syscall(ctypes.c_long(number(name)), *words))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


class Call(ctypes.Structure):
    """A system call of a script. ``result`` is ``NOT_MADE`` until it was made."""

    NOT_MADE = -0xBAD
    _fields_ = (
        ("number", ctypes.c_long),
        ("args", ctypes.c_long * 6),
        ("_result", ctypes.c_long),
    )

    @property
    def result(self) -> int:
        return int(self._result)


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Sigaction(ctypes.Structure):
    """The kernel's struct sigaction, with room for the restorer of x86."""

    _fields_ = (
        ("handler", ctypes.c_ulong),
        ("flags", ctypes.c_ulong),
        ("rest", ctypes.c_ulong * 2),
    )


class Script:
    """System calls for a child, in memory that it shares whatever its flags are.

    Pass ``library.run`` as fn and ``script.memory`` as arg. The child returns the last result.
    """

    _MOST_CALLS = 16
    _SIZE = 16384

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, self._SIZE)
        self._count = ctypes.c_long.from_buffer(self.memory)
        self._used = ctypes.sizeof(ctypes.c_long) + self._MOST_CALLS * ctypes.sizeof(Call)

    def place(self, kind: type[Data]) -> Data:
        """Make an object of ctypes in the shared memory."""
        offset = self._used
        self._used += -(-ctypes.sizeof(kind) // 16) * 16
        placed: Data = kind.from_buffer(  # type: ignore[attr-defined]  # typeshed: on subclasses
            self.memory, offset
        )
        return placed

    def string(self, text: bytes) -> ctypes.Array[ctypes.c_char]:
        """Place a string, with a NUL after it."""
        room = self.place(ctypes.c_char * (len(text) + 1))
        room.value = text
        return room

    def call(self, name: str, *args: Argument) -> Call:
        """Add a system call. Strings and objects are passed by their addresses."""
        assert self._count.value < self._MOST_CALLS
        offset = ctypes.sizeof(ctypes.c_long) + self._count.value * ctypes.sizeof(Call)
        call = Call.from_buffer(self.memory, offset)
        call.number = number(name)
        call._result = Call.NOT_MADE
        for i, arg in enumerate(args):
            data = self.string(arg) if isinstance(arg, bytes) else arg
            call.args[i] = data if isinstance(data, int) else ctypes.addressof(data)
        self._count.value += 1
        return call

    def sleep(self, milliseconds: int) -> Call:
        """Add a pause."""
        duration = self.place(Timespec)
        duration.nanoseconds = milliseconds * 10**6
        return self.call("nanosleep", duration, 0)

    def gate(self) -> Gate:
        """Add a wait until the gate is opened by someone else."""
        word = self.place(ctypes.c_int)
        timeout = self.place(Timespec)
        timeout.seconds = _PATIENCE
        self.call("futex", word, FUTEX_WAIT, 0, timeout)
        return Gate(word)


class Gate:
    """Where a child waits. As a context manager it is open after the block, whatever happened."""

    def __init__(self, word: ctypes.c_int) -> None:
        self._word = word

    def open(self) -> None:
        self._word.value = 1
        syscall("futex", ctypes.addressof(self._word), FUTEX_WAKE, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.open()


# --- starting -----------------------------------------------------------------------------------


def start(fn: int | Script, arg: object = None, flags: int = 0, **options: Any) -> ramet.Child:
    """Call ramet.clone for a process. A Script runs itself."""
    task = _clone(fn, arg, flags, options)
    assert isinstance(task, ramet.Child)
    return task


def start_thread(
    fn: int | Script, arg: object = None, flags: int = 0, **options: Any
) -> ramet.Thread:
    """Call ramet.clone for a thread, with the flags that a thread needs."""
    flags |= ramet.CloneFlags.VM | ramet.CloneFlags.SIGHAND | ramet.CloneFlags.THREAD
    task = _clone(fn, arg, flags, options)
    assert isinstance(task, ramet.Thread)
    return task


def _clone(
    fn: int | Script, arg: object, flags: int, options: dict[str, Any]
) -> ramet.Child | ramet.Thread:
    if isinstance(fn, Script):
        return ramet.clone(load().run, fn.memory, flags, **options)
    return ramet.clone(fn, arg, flags, **options)


def run(fn: int | Script, arg: object = None, flags: int = 0, **options: Any) -> ramet.ExitStatus:
    """Start a process and wait for it."""
    with start(fn, arg, flags, **options) as child:
        return child.wait()
