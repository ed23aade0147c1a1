"""Program: a straight list of system calls, made by a child before it execs or exits.

Compiled to the structures of src/native/program.h. Knows system calls by name and number, not what
they do: that is in _steps.
"""

from __future__ import annotations

import errno
import operator
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from select import POLLIN
from typing import NamedTuple

from ramet import _native
from ramet._child import Child
from ramet._child_error import ChildError, failed_step, killed_in_step
from ramet._clone import HasFileno, clone, start_simply
from ramet._deadlines import check_timeout, nanoseconds
from ramet._flags import CloneFlags
from ramet._pointers import c_string
from ramet._steps import Environment, Filter, Steps
from ramet._syscalls import NUMBERS

_F = CloneFlags
_WORD = 1 << 64
_MOST_ARGUMENTS = 6
_MOST_ERRNO = 191

# src/native/program.h
_UNBLOCKS, _EXPECTS, _OR_NEXT = 1, 2, 4
_CHANGES_CREDENTIALS = 1
_STEP = "q6QIIIIq3Q"
_WORDS = 15  # in _STEP
_SLOT = 10  # the place of the slot among them
_WORD_SIZE = 8
_HEADER_SIZE, _STEP_SIZE = struct.calcsize("=QQ"), struct.calcsize(f"={_STEP}")
_ADDRESS = struct.Struct("=Q")


class Result:
    """What a step of a program will have returned: an argument for later steps.

    Attributes:
        index: the step, from 0.
        pointer: the address where the result lies, for system calls that want one.
    """

    __slots__ = ("_program", "index")

    def __init__(self, program: Program, index: int) -> None:
        self._program = program
        self.index = index

    @property
    def pointer(self) -> ResultPointer:
        """Stand for the address of the result (8 bytes, little-endian)."""
        return ResultPointer(self)

    def __repr__(self) -> str:
        return f"#{self.index + 1}"


class ResultPointer:
    """The address of a `Result`."""

    __slots__ = ("result",)

    def __init__(self, result: Result) -> None:
        self.result = result

    def __repr__(self) -> str:
        return f"&{self.result!r}"


class Parameter:
    """An argument that is another at each start: a descriptor, say.

    Attributes:
        name: what it stands for.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"${self.name}"


class Step(NamedTuple):
    """One system call of a program, as it was asked for."""

    name: str
    args: Sequence[object]
    expect: int | None
    spell: Callable[[int, object], str] | None
    path: int | None

    def __str__(self) -> str:
        """Render like strace does."""
        spell = self.spell
        parts = [
            (spell(i, arg) if spell is not None else "") or render(arg)
            for i, arg in enumerate(self.args)
        ]
        return f"{self.name}({', '.join(parts)})"


class Code(NamedTuple):
    """A compiled program: its structures, and what their addresses point to."""

    structures: bytes
    pins: object


class Program(Steps):
    """A straight list of system calls, made by a child before it execs or exits.

    Put together once, started any number of times, also by several threads at once. What fails
    ends the program; the start then raises `ChildError`, which names the step.

    A child that runs a program shares the memory of this process: it costs the same whatever the
    size of that, and no code but the kernel's runs in it. Signals are blocked, and handlers reset,
    until it execs.

    ``str(program)`` lists the steps, numbered from 1, like strace would; ``#2`` stands for the
    result of step 2. ``len(program)`` is their number.
    """

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._words: list[int] = []  # of struct ramet_step, one after another
        self._flags = 0
        self._slots = 1  # for results that are referred to; 0 is for the others
        self._spare: list[tuple[int, int]] = []  # slots that can be taken again, from which step on
        self._pins: list[object] = []
        self._parameters: list[tuple[str, int]] = []  # and their places in the structures
        self._code: Code | None = None
        self._base: tuple[Program, int] | None = None  # what it was copied from, at which length

    def copy(self) -> Program:
        """Return a program of the same steps, to which others can be added.

        Results of steps of the original stand for the same steps of the copy.
        """
        copy = Program()
        copy._steps = self._steps.copy()
        copy._words = self._words.copy()
        copy._flags = self._flags
        copy._slots = self._slots
        copy._spare = self._spare.copy()
        copy._pins = [self._pins.copy()] if self._pins else []
        copy._parameters = self._parameters.copy()
        copy._base = (self, len(self._steps))
        return copy

    # --- steps ------------------------------------------------------------------------------

    def syscall(
        self,
        name: str | int,
        *args: object,
        tolerate: Iterable[int] = (),
        expect: int | None = None,
    ) -> Result:
        """Add a system call.

        Args:
            name: its name, without a prefix (``"mkdirat"``), or its number.
            args: at most six. An int; None (NULL); a str, bytes or path (its address, with a NUL
                at the end); a list or tuple of these (the address of a NULL-terminated array, as
                for execve); a `Result`, or the `Result.pointer`, of an earlier step; or a writable
                buffer (its address; all starts of the program share it).
            tolerate: errnos that are no failure.
            expect: a result other than this is a failure, too.

        Returns:
            What the call will have returned, for later steps. After a tolerated error that is the
            errno, negated.

        Raises:
            ValueError: there is no such system call on this architecture; it is one that must not
                be made in memory that is shared (it returns twice, changes the memory or the
                state of the thread); a string has a NUL in it; an int has more than 64 bits; or
                the program is too long (65,536 steps, 255 results that are referred to).
            TypeError: an argument is none of these, or there are too many.

        Source: syscall(2), syscalls(2).
        """
        return self._add(name, args, tolerate=tolerate, expect=expect)

    def _add(
        self,
        name: str | int,
        args: Sequence[object],
        *,
        tolerate: Iterable[int] = (),
        expect: int | None = None,
        or_next: bool = False,
        unblocks: bool = True,
        spell: Callable[[int, object], str] | None = None,
        path: int | None = None,
    ) -> Result:
        """Add a step.

        `spell` renders an argument, or leaves it; `path` is the one that may be at fault. Before an
        exec the caller's signals are blocked and no others, unless `unblocks` is false: then all.
        """
        number = _ALLOWED.get(name)
        if number is None:
            name, number = _look_up(name)
        if len(args) > _MOST_ARGUMENTS:
            raise TypeError(f"a system call has at most 6 arguments, {name} got {len(args)}")
        steps = self._steps
        index = len(steps)
        if index == _native.most_steps:
            raise ValueError(f"a program has at most {_native.most_steps} steps")
        if name in _SPECIAL:
            self._flags |= _check_special(name, args)
        flags = (_UNBLOCKS * (unblocks and name in _EXECS)) | (_OR_NEXT * or_next)
        flags |= _EXPECTS * (expect is not None)
        from_results = to_results = 0
        words = [number]
        parameters = []
        for arg in args:
            if type(arg) is int and 0 <= arg < _WORD:
                words.append(arg)
            elif isinstance(arg, bytes):
                words.append(self._pin(arg))
            elif isinstance(arg, Result):
                from_results |= 1 << len(words) - 1
                words.append(self._slot(arg))
            elif isinstance(arg, ResultPointer):
                to_results |= 1 << len(words) - 1
                words.append(self._slot(arg.result))
            elif isinstance(arg, Parameter):
                parameters.append((arg.name, _place(index, len(words) - 1)))
                words.append(0)
            else:
                words.append(self._word(arg))
        words += _PADDING[len(args)]
        words += (from_results, to_results, flags, 0, expect or 0)
        words += _mask(tolerate) if tolerate else _NOTHING_TOLERATED
        # In this order: what raises above leaves the program as it was.
        self._words += words
        self._parameters += parameters
        steps.append(Step(str(name), args, expect, spell, path))
        self._code = None
        return Result(self, index)

    def _slot(self, result: Result) -> int:
        """Find, or make, the place where a result is kept."""
        index = self._index(result)
        place = index * _WORDS + _SLOT
        slot = self._words[place]
        if slot == 0 and self._spare and self._spare[0][1] <= index:
            slot = self._words[place] = self._spare.pop(0)[0]
        if slot == 0:
            if self._slots == _native.most_results:
                raise ValueError(f"at most {_native.most_results - 1} results can be referred to")
            slot = self._words[place] = self._slots
            self._slots += 1
        return slot

    def _close(self, result: Result) -> None:
        """Close a descriptor that is not referred to any more: others may take its place."""
        self.close(result)
        self._spare.append((self._slot(result), len(self._steps)))

    def _index(self, result: Result) -> int:
        program, length = self, len(self._steps)
        while result._program is not program and program._base is not None:
            program, length = program._base
        if result._program is not program or result.index >= length:
            raise ValueError(f"{result!r} is a result of another program")
        return result.index

    def _word(self, arg: object) -> int:
        """Turn an argument into a word, and pin what it points to."""
        if arg is None:
            return 0
        if isinstance(arg, int):
            if not -_WORD // 2 <= arg < _WORD:
                raise ValueError(f"an argument has at most 64 bits: {arg:#x}")
            return int(arg) % _WORD
        if isinstance(arg, str | os.PathLike):
            return self._pin(c_string(arg))
        if isinstance(arg, Environment | Filter):
            return arg.pin(self._pin)
        if isinstance(arg, list | tuple):
            return self._pin(_native.strings(arg))
        try:
            view = memoryview(arg)  # type: ignore[arg-type]
            address = _native.address(view)
        except (TypeError, BufferError) as error:
            kind = type(arg).__name__
            raise TypeError(f"an argument of a system call can't be a {kind} ({error})") from None
        self._pins.append(view)
        return address

    def _pin(self, data: bytes) -> int:
        self._pins.append(data)
        return _native.bytes_address(data)

    # --- compilation ------------------------------------------------------------------------

    def _compile(self) -> Code:
        """Return the structures of the steps there are now; made once, until there are more."""
        code = self._code
        if code is None:
            count = len(self._steps)
            structures = _layout(count).pack(count, self._flags, *self._words)
            code = self._code = Code(structures, self._pins.copy())
        return code

    def _filled(self, values: Mapping[str, int]) -> Code:
        """Return the structures with a value for each parameter.

        Raises:
            KeyError: there is none for one of them.
        """
        code = self._compile()
        structures = bytearray(code.structures)
        for name, place in self._parameters:
            _ADDRESS.pack_into(structures, place, values[name])
        return Code(bytes(structures), code)

    def _portable(self) -> tuple[bytes, bytes]:
        """Lay the program out for another process.

        Returns:
            The structures and what they point to, with offsets in place of addresses; and the
            places of these.

        Raises:
            ValueError: a step execs.
        """
        image = bytearray(self._compile().structures)
        places = []

        def point(place: int, data: bytes) -> None:
            places.append(place)
            _ADDRESS.pack_into(image, place, len(image))
            image.extend(data + bytes(_WORD_SIZE - len(data) % _WORD_SIZE))

        for index, step in enumerate(self._steps):
            for number, arg in enumerate(step.args):
                if arg is None or isinstance(arg, int | Result | ResultPointer):
                    continue
                if isinstance(arg, list | tuple | Environment | Parameter):
                    raise ValueError(f"{step} can't be made in another process")
                place = _place(index, number)
                if isinstance(arg, Filter):
                    inner = len(image) + arg.ADDRESS
                    point(place, arg.pointing_to(0))
                    point(inner, arg.code)
                elif isinstance(arg, str | os.PathLike):
                    point(place, c_string(arg))
                else:
                    point(place, bytes(arg))  # type: ignore[call-overload]
        return bytes(image), struct.pack(f"={len(places)}Q", *places)

    def __len__(self) -> int:
        return len(self._steps)

    def __str__(self) -> str:
        width = len(str(len(self._steps)))
        return "\n".join(f"{i:{width}}  {step}" for i, step in enumerate(self._steps, 1))

    def __repr__(self) -> str:
        return f"<ramet.Program of {len(self._steps)} steps>"

    # --- starting ---------------------------------------------------------------------------

    def start(
        self,
        *,
        flags: int = 0,
        exit_signal: int | None = None,
        set_tid: Sequence[int] = (),
        cgroup: int | str | os.PathLike[str] | HasFileno | None = None,
        timeout: float | None = None,
    ) -> Child:
        """Start a child that runs the program, and wait until it has execed or ended.

        A program that ends without exec makes the child exit with 0.

        Args:
            flags: `CloneFlags` beside VM, which is always there, and VFORK: what the child shares,
                and its namespaces.
            exit_signal: as of `ramet.clone`.
            set_tid: as of `ramet.clone`.
            cgroup: as of `ramet.clone`.
            timeout: seconds that the program may take. By default it may take for ever; the calling
                thread then cannot be interrupted, but for its being killed.

        Returns:
            The child.

        Raises:
            ChildError: a step failed, or a signal ended the child before it was done; the child
                has been reaped.
            TimeoutError: the program took too long; the child has been killed.
            ValueError: flags that do not go together, or with a program.
            OSError: the kernel refuses to start the child.
        """
        seconds = check_timeout(timeout)
        suspends = seconds is None
        code = self._compile()
        flags = program_flags(flags, suspends=suspends)
        child = begin(code, flags, exit_signal, set_tid, cgroup)
        return self._finish(child, seconds, suspended=suspends)

    def _finish(self, child: Child, seconds: float | None, *, suspended: bool) -> Child:
        """Wait until a child has execed or ended, and see what became of its program."""
        if not suspended:
            self._wait(child, seconds)
        if child._failed:
            raise self._failure(child)
        if not child._has_execed() and not self._is_done(child):
            raise self._killed(child)
        child._kill = False
        return child

    def _wait(self, child: Child, seconds: float | None) -> None:
        """Wait until the child has let go of our memory."""
        try:
            done = child._join(nanoseconds(seconds))
        except BaseException:
            child.kill()
            child.close()
            raise
        if not done:
            step = min(child._progress(), len(self._steps) - 1)
            child.kill()
            child.close()  # its memory is kept until it is gone, however long that takes
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"{self._steps[step]} has not ended after {seconds} seconds "
                f"(step {step + 1} of {len(self)})",
            )
        child._let_go()

    def _failure(self, child: Child) -> ChildError:
        _ended_by_itself(child)
        child.close()
        return self._error(child._progress(), child._result)

    def _error(self, index: int, result: int) -> ChildError:
        step = self._steps[index]
        filename = None
        if step.path is not None and result < 0:
            named = step.args[step.path]
            filename = os.fspath(named) if isinstance(named, str | bytes | os.PathLike) else None
        return failed_step(
            result,
            str(step),
            index + 1,
            len(self._steps),
            filename=filename,
            expected=step.expect,
        )

    def _is_done(self, child: Child) -> bool:
        """Whether a child has execed or come to its end, and not been killed before."""
        step = child._progress()
        if step >= len(self._steps):
            return True
        if self._steps[step].name not in _EXECS:
            # It has let go of our memory: it has ended, perhaps by this very step.
            return _ended_by_itself(child)
        while not child._has_execed():
            ended = child._readable(_MOMENT, POLLIN)
            flags = _flags_of(child.pid)
            if flags is None:
                return not ended or _ended_by_itself(child)
            if not flags & _PF_FORKNOEXEC:
                return True
            if ended:
                return False
        return True

    def _killed(self, child: Child) -> ChildError:
        step = child._progress()
        status = child.wait()
        child.close()
        return killed_in_step(str(self._steps[step]), step + 1, len(self._steps), status)


def program_flags(flags: int, *, suspends: bool) -> int:
    """Check the flags of a program's child, and add those by which it shares our memory.

    Args:
        flags: `CloneFlags`.
        suspends: the child has let go of our memory when its start returns.
    """
    flags = operator.index(flags)
    if flags & _NEVER:
        raise ValueError(
            "a program runs in a process with handlers of its own, and without a thread "
            "pointer: THREAD, SIGHAND, SETTLS, CHILD_SETTID and CHILD_CLEARTID are not for it"
        )
    return flags & ~_VM_VFORK | (_VM_VFORK if suspends else _VM)


def begin(
    code: Code,
    flags: int,
    exit_signal: int | None = None,
    set_tid: Sequence[int] = (),
    cgroup: int | str | os.PathLike[str] | HasFileno | None = None,
) -> Child:
    """Start a child, with `program_flags`."""
    address = _native.bytes_address(code.structures)
    if exit_signal is None and cgroup is None and set_tid == ():
        child = start_simply(_native.run_program, address, code, flags)
    else:
        child = clone(
            Runner(code),
            address,
            flags,
            exit_signal=exit_signal,
            set_tid=set_tid,
            cgroup=cgroup,
        )
    assert isinstance(child, Child)  # noqa: S101 - for types: THREAD is refused
    return child


class Runner:
    """What runs a program, as a function for clone, which keeps it and thereby the code."""

    address = _native.run_program

    def __init__(self, code: Code) -> None:
        self._code = code


# /proc/PID/stat, after the command: state is field 3, flags is 9 (proc_pid_stat(5)).
_STAT_FLAGS = 9 - 3
_PF_FORKNOEXEC = 0x40  # include/linux/sched.h: forked but didn't exec
_MOMENT = 1_000_000  # nanoseconds


def _ended_by_itself(child: Child) -> bool:
    """Wait for the end of a child that is about to come. False if it was a signal's doing."""
    try:
        return child.wait().signal is None
    except ChildProcessError:  # before Linux 6.15: others have reaped it, and nobody tells
        return True


def _flags_of(pid: int) -> int | None:
    """Ask for a task's flags; also a zombie has them."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[_STAT_FLAGS])
    except OSError:
        return None


_VM_VFORK = int(_F.VM | _F.VFORK)
_VM = int(_F.VM)
_NEVER = int(_F.THREAD | _F.SIGHAND | _F.SETTLS | _F.CHILD_SETTID | _F.CHILD_CLEARTID)

_IS_SHARED = "the child shares this process's memory, and would change it"
_TWICE = "it returns twice, the second time into a child that has no program"
_IS_A_THREAD = "it changes what the C library knows of the calling thread"
_REFUSED = {
    **dict.fromkeys(("fork", "vfork", "clone", "clone3"), _TWICE),
    **dict.fromkeys(
        (
            *("mmap", "munmap", "mremap", "mprotect", "pkey_mprotect", "brk", "madvise", "mseal"),
            *("remap_file_pages", "shmat", "shmdt", "map_shadow_stack", "process_madvise"),
            *("io_setup", "io_destroy", "mlock", "mlock2", "mlockall", "munlock", "munlockall"),
            *("pkey_alloc", "pkey_free", "mbind", "set_mempolicy_home_node", "move_pages"),
            *("migrate_pages", "userfaultfd", "uselib", "membarrier", "modify_ldt"),
        ),
        _IS_SHARED,
    ),
    **dict.fromkeys(
        (
            *("rt_sigreturn", "arch_prctl", "set_tid_address", "set_robust_list", "rseq"),
            "set_thread_area",
        ),
        _IS_A_THREAD,
    ),
}
# PR_SET_DUMPABLE, PR_SET_MM, PR_SET_THP_DISABLE, PR_MPX_ENABLE and DISABLE_MANAGEMENT,
# PR_SET_TAGGED_ADDR_CTRL, PR_SET_MDWE, PR_SET_MEMORY_MERGE, PR_FUTEX_HASH, PR_SET_VMA: see
# linux/prctl.h.
_REFUSED_PRCTL = frozenset((4, 35, 41, 43, 44, 55, 65, 67, 78, 0x53564D41))
_EXECS = frozenset(("execve", "execveat"))
# Those by which a task may come to have other ids or more capabilities: see dumpable.h.
_CREDENTIALS = frozenset(
    (
        *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid"),
        *("setfsgid", "capset", "unshare", "setns", "keyctl"),
    )
)


# For the flat list of words: what makes six arguments of fewer.
_PADDING = [(0,) * (_MOST_ARGUMENTS - count) for count in range(_MOST_ARGUMENTS + 1)]
_NOTHING_TOLERATED = (0, 0, 0)
_MOST_NUMBER = 1 << 30  # above are those of x32

_ALLOWED: dict[str | int, int] = {
    name: number for name, number in NUMBERS.items() if name not in _REFUSED
}
# Those that are looked at more closely.
_SPECIAL = _CREDENTIALS | {"prctl"}


def _look_up(name: str | int) -> tuple[str, int]:
    """Find a call that is not among the allowed names: by its number, or why not."""
    if isinstance(name, str):
        if name in _REFUSED:
            raise ValueError(f"{name} must not be part of a program: {_REFUSED[name]}")
        raise ValueError(f"this architecture has no system call {name!r}")
    number = operator.index(name)
    if not 0 <= number < _MOST_NUMBER:
        raise ValueError(f"there is no system call {number}")
    known = _names().get(number)
    if known in _REFUSED:
        _look_up(known)
    return known or f"syscall_{number}", number


def _check_special(name: str, args: Sequence[object]) -> int:
    """Return the flags that a program with such a call needs."""
    if name in _CREDENTIALS:
        return _CHANGES_CREDENTIALS
    option = args[0] if args else 0
    if not isinstance(option, int):
        raise TypeError("the option of prctl must be known beforehand")
    if option % (1 << 32) in _REFUSED_PRCTL:  # the kernel takes an int
        raise ValueError(f"prctl({option}) must not be part of a program: {_IS_SHARED}")
    return 0


def _mask(tolerate: Iterable[int]) -> tuple[int, int, int]:
    """Make the bits of the errnos that are no failure."""
    mask = 0
    for error in tolerate:
        if not isinstance(error, int) or not 0 < error <= _MOST_ERRNO:
            raise ValueError(f"tolerate must have errnos, not {error!r}")
        mask |= 1 << error
    return mask % _WORD, mask >> 64 & _WORD - 1, mask >> 128


def _place(step: int, argument: int) -> int:
    """Where an argument of a step lies in the structures."""
    return _HEADER_SIZE + step * _STEP_SIZE + (1 + argument) * _WORD_SIZE


@lru_cache(maxsize=64)
def _layout(steps: int) -> struct.Struct:
    return struct.Struct("=QQ" + _STEP * steps)


@lru_cache(maxsize=1)
def _names() -> dict[int, str]:
    return {number: name for name, number in NUMBERS.items()}


# --- rendering ----------------------------------------------------------------------------------

_LONGEST_TEXT = 64
_MOST_ITEMS = 8


def render(arg: object) -> str:
    """Render an argument like strace does."""
    if arg is None:
        text = "NULL"
    elif isinstance(arg, int):
        text = f"{arg:#x}" if arg >= 1 << 16 else str(int(arg))
    elif isinstance(arg, str | bytes | os.PathLike):
        text = _render_string(arg)
    elif isinstance(arg, Environment | Filter):
        text = repr(arg)
    elif isinstance(arg, list | tuple):
        items = [render(item) for item in arg[:_MOST_ITEMS]]
        text = f"[{', '.join(items + ['...'] * (len(arg) > _MOST_ITEMS))}]"
    elif isinstance(arg, Result | ResultPointer | Parameter):
        text = repr(arg)
    else:
        text = f"<{memoryview(arg).nbytes} bytes>"  # type: ignore[arg-type]
    return text


def _render_string(arg: str | bytes | os.PathLike[str]) -> str:
    text = os.fsdecode(arg)
    if isinstance(arg, bytes) and not text.isprintable():
        return f"<{len(arg)} bytes>"
    return _quote(text[:_LONGEST_TEXT]) + ("..." if len(text) > _LONGEST_TEXT else "")


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in escaped) + '"'
