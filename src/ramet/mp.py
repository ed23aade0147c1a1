"""multiprocessing: a context whose processes start from a `ramet.Zygote`.

Processes, pools, queues and locks are the standard ones; what starts, watches and signals the
processes is a zygote and their pidfds. So they cost the same whatever the size of this process, and
are safe whatever its threads do. Whatever takes a multiprocessing context takes this one.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing
import os
import secrets
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import context, popen_fork, process, resource_tracker, spawn, util
from typing import Any, ClassVar, NoReturn, Self, Unpack, cast
from weakref import WeakValueDictionary

from ramet._child_options import ChildOptions
from ramet._flags import CloneFlags
from ramet._zygote import ChildDiedError, FunctionChild, Zygote

__all__ = ["Context", "get_context"]

_CODE_OF_FAILURES = 1  # of the setup; a function that raises has it, too
_STANDARD_STREAMS = 3  # after their numbers come those of the descriptors that are passed
# What nearly all processes would have to import.
_USED_BY_PROCESSES = (
    *("multiprocessing.connection", "multiprocessing.queues", "multiprocessing.synchronize"),
    *("multiprocessing.pool", "concurrent.futures.process"),
)
_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_MAIN = ("init_main_from_name", "init_main_from_path")


def get_context(
    preload: Iterable[str] = (), *, main: bool = True, **options: Unpack[ChildOptions]
) -> Context:
    """Make a multiprocessing context whose processes start from a zygote of its own.

    The zygote is started with the first process. The processes are children of this one; they have
    its environment, directory and ``sys.path`` as these are when they start, and its resource
    tracker. What is multiprocessing's default here is so there. A context can be pickled: in
    another process it has another zygote.

    Args:
        preload: modules that the zygote imports once. They may not start threads.
        main: also import the main module there, once, as multiprocessing does in each process.
        options: what each process has of its own, as of `Zygote.using`: flags (`CloneFlags`:
            namespaces, but not NEWPID), uid_map, gid_map, cwd, env, rlimits, umask, user, group,
            extra_groups, nice, affinity, scheduler, ioprio, start_new_session, process_group,
            no_new_privs, hostname, before_run, and cgroup by its path. A process whose setup fails
            says so on standard error, and has 1 for its exit code.

    Returns:
        The context.

    Raises:
        KeyError: there is no such user or group.
        TypeError: an option that is not known, or of a wrong kind.
        ValueError: NEWPID, or what does not go with another option.
    """
    if isinstance(preload, str):
        raise TypeError("preload must be names of modules, not a string")
    return Context(tuple(preload), main, options)


class Context(context.BaseContext):
    """A multiprocessing context, made by `get_context`.

    It has all that the standard ones have. As a context manager it ends its zygote at the end of
    the block.
    """

    _name = "ramet"
    Process: type[_Process]

    def __init__(
        self, preload: tuple[str, ...], main: bool, options: ChildOptions, key: str | None = None
    ) -> None:
        """See `get_context`.

        Args:
            preload: modules.
            main: import the main module.
            options: of each process.
            key: what it is known by in all processes; by default new.

        Raises:
            Exception: as `get_context`.
        """
        self._preload, self._main, self._options = preload, main, _checked(options)
        self._key = key or secrets.token_hex(8)
        self._zygote = Zygote((__name__, *_USED_BY_PROCESSES, *preload), main=main)
        # The environment is told at each start: that of the zygote may be old.
        self._bound: dict[str, Any] = {k: v for k, v in self._options.items() if k != "env"}
        self._zygote.using(**self._bound)  # raises what is wrong with them
        self._end_at_exit()
        util.register_after_fork(self, Context._end_at_exit)  # processes forget finalizers
        members = {"_context": self, "__module__": __name__}
        self.Process = type("RametProcess", (_Process,), members)
        _known[self._key] = self

    def warm_up(self) -> None:
        """Start the zygote now, and wait until it has imported everything.

        Raises:
            ZygoteError: it cannot be started, or an import fails or starts threads.
        """
        self._zygote.warm_up()

    def close(self) -> None:
        """End the zygote; processes go on. The next one that is started starts another."""
        self._zygote.close()

    def get_context(self, method: str | None = None) -> Any:
        """Return this context, or a standard one.

        Args:
            method: "fork", "spawn", "forkserver"; None or "ramet" for this one.

        Returns:
            The context.

        Raises:
            ValueError: there is no such method.
        """
        return self if method == self._name else super().get_context(method)

    def _start(self, data: bytes, files: list[int]) -> FunctionChild[Any]:
        numbers = dict(enumerate(files, _STANDARD_STREAMS))
        return self._zygote.using(fds=numbers, **self._bound).start(_run, data, len(files))

    def _end_at_exit(self) -> None:
        """End the zygote when the interpreter ends, after all processes were joined."""
        util.Finalize(self, self._zygote.close, exitpriority=-1)

    def _prepared(self, name: str) -> dict[str, Any]:
        """Collect what a process has to know before it can unpickle its object."""
        data: dict[str, Any] = spawn.get_preparation_data(name)
        if data["start_method"] == self._name:
            del data["start_method"]  # there is no such name there; the default itself comes along
        for key in _MAIN if not self._main else ():
            data.pop(key, None)
        if "cwd" in self._options:
            del data["dir"]
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (self._key, self._preload, self._main, self._options)


# By their keys, so that one that comes several times to a process has one zygote there.
_known: WeakValueDictionary[str, Context] = WeakValueDictionary()


def _restored(key: str, preload: tuple[str, ...], main: bool, options: ChildOptions) -> Context:
    return _known.get(key) or Context(preload, main, options, key)


def _checked(options: ChildOptions) -> ChildOptions:
    """Refuse what is not for the processes of a context; make copies of all that may change."""
    for name in options:
        if name not in ChildOptions.__optional_keys__:
            raise TypeError(f"get_context() got an unexpected option {name!r}")
    if options.get("flags", 0) & CloneFlags.NEWPID:
        raise ValueError(
            "CLONE_NEWPID: the process would be the first of its namespace, which terminate() does "
            "not reach, and not know the pid that pools know it by: use a ramet.Zygote"
        )
    cgroup = options.get("cgroup") or ""
    if not isinstance(cgroup, str | os.PathLike):
        raise TypeError(f"cgroup must be a path, not {cgroup!r}: other processes have no such file")
    kept = cast("ChildOptions", {k: v for k, v in options.items() if v is not None})
    if cwd := kept.get("cwd"):
        kept["cwd"] = os.path.abspath(cwd)
    copies: dict[str, Callable[[Any], Any]] = {
        "env": dict,
        "rlimits": dict,
        "extra_groups": tuple,
        "affinity": frozenset,
    }
    for name, copy in copies.items():
        if name in kept:
            kept[name] = copy(kept[name])  # type: ignore[literal-required]
    return kept


# --- this side ----------------------------------------------------------------------------------


class _Process(process.BaseProcess):
    """Of these each context makes a class of its own."""

    _start_method = None  # set in the process: the context itself
    _context: ClassVar[Context]

    @classmethod
    def _Popen(cls, process_obj: process.BaseProcess) -> _Popen:  # noqa: N802 - multiprocessing's
        return _Popen(process_obj, cls._context)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self) is self._context.Process:
            return _new_process, (self._context,), self.__dict__
        return super().__reduce_ex__(protocol)


def _new_process(owner: Context) -> _Process:
    return owner.Process.__new__(owner.Process)


class _DupFd:
    """A descriptor that is passed to a process, there."""

    def __init__(self, number: int) -> None:
        self._number = number

    def detach(self) -> int:
        return self._number


class _Popen(popen_fork.Popen):
    """A process that was started, as `Process` sees it."""

    method = "ramet"
    DupFd = _DupFd

    def __init__(self, process_obj: process.BaseProcess, owner: Context) -> None:
        self._owner = owner
        self._files: list[int] = []
        self._started: FunctionChild[Any] | None = None
        self._name = process_obj.name
        self._pid_here = os.getpid()
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """Pass a descriptor, and return its number there."""
        self._files.append(fd)
        return _STANDARD_STREAMS + len(self._files) - 1

    def _launch(self, process_obj: process.BaseProcess) -> None:
        # The first two are the parent's sentinel, and the resource tracker of all.
        tracker: Any = resource_tracker._resource_tracker
        self._files += [os.pidfd_open(os.getpid()), tracker.getfd()]
        try:
            started = self._owner._start(self._pickled(process_obj), self._files)
        finally:
            os.close(self._files[0])
        self._started = started
        self.pid = started.pid
        self.sentinel = os.dup(started.fileno())

    def _pickled(self, process_obj: process.BaseProcess) -> bytes:
        told = {
            "env": self._owner._options.get("env") or dict(os.environ),
            "ignored": [s for s in _SIGNALS if signal.getsignal(s) is signal.SIG_IGN],
            "default": multiprocessing.get_context(),
        }
        buffer = io.BytesIO()
        context.set_spawning_popen(self)  # type: ignore[arg-type]
        try:
            for part in (self._owner._prepared(process_obj.name), told, process_obj):
                context.reduction.dump(part, buffer)  # type: ignore[attr-defined]
        finally:
            context.set_spawning_popen(None)
        return buffer.getvalue()

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Return the exit code, None while it runs; without WNOHANG, wait for it."""
        if self.returncode is None and self._started is not None:
            child = self._started.child
            try:
                status = child.poll() if flag & os.WNOHANG else child.wait()
            except ChildProcessError:
                if self._pid_here != os.getpid():
                    return None  # a fork of ours cannot know
                self.returncode = 255  # somebody else has waited for it: as of a lost forkserver
            else:
                if status is None:
                    return None
                self.returncode = status.returncode
                if status.code == _CODE_OF_FAILURES:
                    self._tell_failure(self._started)
        return self.returncode

    def _tell_failure(self, started: FunctionChild[Any]) -> None:
        """Say what has kept the process from what it was started for."""
        with suppress(ChildDiedError):  # by itself, as it should
            error = started.exception()
            sys.stderr.write(f"Process {self._name}:\n")
            traceback.print_exception(error)

    def _send_signal(self, sig: int) -> None:
        if self.returncode is None and self._started is not None:
            try:
                self._started.child.send_signal(sig)
            except OSError:
                if self.wait(timeout=0.1) is None:
                    raise

    def close(self) -> None:
        """Close the pidfd."""
        started, self._started = self._started, None
        if started is not None:
            started.close()
            os.close(self.sentinel)

    def __del__(self) -> None:
        self.close()


# --- the process's side -------------------------------------------------------------------------


def _run(data: bytes, count: int) -> NoReturn:
    """Be the process. As in the standard module's forkserver, and with its order of things."""
    code = 1
    try:
        atexit._clear()
        atexit.register(util._exit_function)  # type: ignore[attr-defined]
        files = range(_STANDARD_STREAMS, _STANDARD_STREAMS + count)
        for file in files:
            os.set_inheritable(file, False)
        tracker: Any = resource_tracker._resource_tracker
        sentinel, tracker._fd = files[:2]
        tracker._pid = None
        code = _received(data)._bootstrap(parent_sentinel=sentinel)
    except Exception:  # noqa: BLE001 - it is told
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        atexit._run_exitfuncs()
        os._exit(code)


def _received(data: bytes) -> Any:
    """Become like the parent, and return the object of the process."""
    buffer = io.BytesIO(data)
    current: Any = process.current_process()
    current._inheriting = True
    try:
        spawn.prepare(context.reduction.pickle.load(buffer))  # type: ignore[attr-defined]
        told = context.reduction.pickle.load(buffer)  # type: ignore[attr-defined]
        for number in told["ignored"]:
            signal.signal(number, signal.SIG_IGN)
        for name in os.environ.keys() - told["env"].keys():
            del os.environ[name]
        os.environ.update(told["env"])
        if isinstance(told["default"], Context):
            context._default_context._actual_context = told["default"]  # type: ignore[attr-defined]
        return context.reduction.pickle.load(buffer)  # type: ignore[attr-defined]
    finally:
        del current._inheriting
