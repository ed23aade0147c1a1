"""What a zygote runs: it imports what it was told to, and then copies itself for each request.

The other side is _zygote; between the two is src/native/zygote.h. Messages are pickles, from the
process that has started this one. A child touches as few objects as it can: each is in memory that
has to be copied for it, which is most of what the child costs.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import runpy
import signal
import sys
import traceback
import types
from contextlib import suppress
from typing import Any, NoReturn

from ramet import _native, _values
from ramet._fork import thread_id_offset

LONGEST_MESSAGE = 1 << 16
_STANDARD = 2
READY = b"\0"

# Libraries for linear algebra start threads when they are loaded; with one each they do not.
THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
)

importing_main = False
"""Whether this process is a zygote that imports the main module of the other side."""

_distrusted = False
"""Whether the other side unpickles nothing that comes from here."""

# How often a function has to run until the interpreter has adapted its code (PEP 659).
_REHEARSALS = 16


def main(channel: int, file: int, births: int) -> None:
    """Serve requests until the other side closes the socket.

    Args:
        channel: the socket.
        file: what this is told, as a value.
        births: a file for the pids of children.
    """
    # Of the terminal: the other side decides what it means for the zygote.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    os.set_inheritable(channel, False)
    os.set_inheritable(births, False)
    told = _values.load(file)
    os.close(file)
    error = _prepare(told)
    if not error:
        offset = thread_id_offset()
        _rehearse_in_zygote()
        if _threads() > 1:
            error = "a hook of os.register_at_fork starts a thread, of which copies would have none"
    if error:
        _say(channel, error.encode()[-LONGEST_MESSAGE:])
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # or each child would, too
    if _distrusted:
        _unshare_memory()
    gc.collect()
    gc.freeze()
    _say(channel, READY)
    files = sorted(_open_files() - {channel, births})
    born = _native.serve(channel, offset, births, signal.SIGINT not in blocked)
    if born is not None:
        _live(*born, files)


def _unshare_memory() -> None:
    """Let each child have its own of the memory that others could write to, such as of a lock.

    Source: proc_pid_smaps(5).
    """
    with open("/proc/self/smaps") as file:
        for line in file.readlines():
            name, *words = line.split()
            if not name.endswith(":"):
                first, last = (int(address, 16) for address in name.split("-"))
            elif name == "VmFlags:" and "sh" in words:
                _native.make_private(first, last - first)


def _say(channel: int, words: bytes) -> None:
    with suppress(BrokenPipeError):  # nobody is there any more: there will be no orders
        os.write(channel, words)


def _open_files() -> set[int]:
    """List the descriptors that there are, beside the standard ones."""
    found = {int(name) for name in os.listdir("/proc/self/fd")}  # with that of the listing itself
    return {fd for fd in found if fd > _STANDARD and _is_open(fd)}


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# --- before the first child ---------------------------------------------------------------------


def _prepare(told: dict[str, Any]) -> str:
    """Become like the other side, and import. Returns what went wrong."""
    global _distrusted  # noqa: PLW0603 - of this process
    _distrusted = told["distrusted"]
    sys.path[:] = told["path"]
    ours = [name for name in THREAD_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(ours, "1"))
    if told["authkey"] is not None:
        process = importlib.import_module("multiprocessing.process")
        process.current_process().authkey = told["authkey"]
    if told["main"] is not None:
        sys.argv[:] = told["argv"]
    for name in (*(["__main__"] if told["main"] is not None else []), *told["preload"]):
        before = _threads()
        try:
            if name == "__main__":
                _import_main(*told["main"])
            else:
                importlib.import_module(name)
        except BaseException:  # noqa: BLE001 - it is told
            return f"preloading {name} failed:\n{traceback.format_exc()}"
        if _threads() > before:
            return (
                f"preloading {name} has started threads, of which copies would have none: set the "
                "variables of its libraries that say how many there are, such as "
                f"{', '.join(THREAD_VARIABLES[:3])}, or import it in the functions"
            )
    for name in ours:  # they are not for what children start
        os.environ.pop(name, None)
    return ""


def _import_main(kind: str, name: str) -> None:
    """Import the main module of the other side under the name that multiprocessing gives it."""
    global importing_main  # noqa: PLW0603 - of this process
    importing_main = True
    module = types.ModuleType("__mp_main__")
    if kind == "module":
        names = runpy.run_module(name, run_name=module.__name__, alter_sys=True)
    else:
        names = runpy.run_path(name, run_name=module.__name__)
    module.__dict__.update(names)
    sys.modules["__main__"] = sys.modules[module.__name__] = module
    importing_main = False


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _rehearse_in_zygote() -> None:
    """Do what each child does, so that what this changes for good is changed before."""
    for _ in range(_REHEARSALS):
        _native.rehearse()
        _rehearse()


def _rehearse() -> None:
    """Do what comes with each function, but for its setup."""
    work = pickle.dumps((_nothing, (), {}, None), protocol=5)
    file = _values.new_file("rehearsal")
    _report(_work(work, file.number, 0, None), file.number)


def _nothing() -> None:
    """Be the function of a rehearsal."""


# --- a child ------------------------------------------------------------------------------------


def _live(socket: int, ahead: bool, mask: int, files: list[int]) -> NoReturn:
    """Wait for what the child is there for, do it, and end."""
    code = 1
    try:
        if ahead:  # there is time to have copied what will be written to
            _rehearse()
        code = _run(*_native.work(socket, mask, files), mask)
    except BaseException:  # noqa: BLE001 - nobody else would tell it
        traceback.print_exc()
    finally:
        _native.leave(code)


def _run(work: bytes, kept: list[int], program: int, error: int, mask: int) -> int:
    """Do what the child is there for. Returns its exit code."""
    result = kept[0]
    if error:
        outcome: tuple[Any, ...] = ("failed", -1, error)
    else:
        outcome = _work(work, kept[-1], program, mask)
    code = 0 if _report(outcome, result) else 1
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return code


def _work(work: bytes, file: int, program: int, mask: int | None) -> tuple[Any, ...]:
    """Call the function, which is in a message or else in a file. Returns what became of it."""
    try:
        if mask is not None:
            _native.set_mask(mask)  # a signal may have come since there is work
        # Before the setup, after which the files of modules may be out of reach.
        given = pickle.loads(work) if work else _values.load(file)  # noqa: S301 - our parent's
        fn, args, kwargs, env = given
        if program:
            failed = _native.run_in_place(program)
            if failed is not None:
                return ("failed", *failed)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        return ("value", fn(*args, **kwargs))
    except BaseException as error:  # noqa: BLE001 - it is told
        return ("error", _portable(error), traceback.format_exc())


def _report(outcome: tuple[Any, ...], file: int) -> bool:
    """Write the outcome. False if it is bad, or cannot be written."""
    if _distrusted and outcome[0] != "value":  # numbers, or the last thing is a text
        told = outcome[1:] if outcome[0] == "failed" else outcome[-1]
        os.write(file, importlib.import_module("json").dumps(told).encode())
        return False
    try:
        _values.dump(outcome, file)
    except BaseException as error:  # noqa: BLE001 - it is told
        _values.dump(("error", _portable(error), traceback.format_exc()), file)
        return False
    return bool(outcome[0] == "value")


def _portable(error: BaseException) -> BaseException:
    """Make what can be carried of an exception."""
    try:
        data, buffers = _values.encode(error)
        pickle.loads(data, buffers=buffers)  # noqa: S301 - just made
    except Exception:  # noqa: BLE001 - whatever is wrong with it
        text = "".join(traceback.format_exception_only(error)).strip()
        return RuntimeError(text)
    return error
