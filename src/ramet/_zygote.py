"""Zygote: Python functions in fresh children of a warmed interpreter, which are ours.

The zygote is started by exec, has one thread, imports what it is told to once, and copies itself
for each request with CLONE_PARENT: so the child has our process for its parent, and costs the same
whatever the size of that, and whatever its threads do. The other side is _zygote_main.
"""

from __future__ import annotations

import operator
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from types import MappingProxyType, TracebackType
from typing import Any, Generic, NamedTuple, ParamSpec, Self, TypeVar
from weakref import WeakSet

from ramet import _native, _values, _zygote_main
from ramet._child import Child, ExitStatus
from ramet._clone import Call, HasFileno, cgroup_descriptor, make_call
from ramet._deadlines import check_timeout, deadline_after
from ramet._flags import CloneFlags
from ramet._fork import check_flags_of_copy
from ramet._native import Descriptor
from ramet._nursery import Nursery
from ramet._program import Program
from ramet._spawn import File, IdMap, IdMaps, check_fds, group_id, setup, spawn, user_id
from ramet._zygote_main import READY

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PARENT, _NEWUSER = int(CloneFlags.PARENT), int(CloneFlags.NEWUSER)
_INTO_CGROUP, _NEWPID = int(CloneFlags.INTO_CGROUP), int(CloneFlags.NEWPID)
_MOST_INLINE = 1 << 15  # bytes of a function and its arguments that go with the request
_WORK = struct.Struct("=4Q")  # struct ramet_work, src/native/zygote.h
_CHANNEL, _FILE, _BIRTHS = DESCRIPTORS = 3, 4, 5  # of the zygote
_HERE = os.path.dirname(os.path.dirname(__file__))
_CODE = (
    f"import sys; sys.path.append({_HERE!r}); from ramet._zygote_main import main; "
    f"main({_CHANNEL}, {_FILE}, {_BIRTHS})"
)


class ZygoteError(Exception):
    """The zygote could not be started, or has ended."""


class RemoteTraceback(Exception):  # noqa: N818 - the name that multiprocessing and concurrent use
    """Where an exception was raised in a child: the cause of the exception that is raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


class ChildDiedError(Exception):
    """A child ended before its function returned.

    Attributes:
        status: how.
    """

    def __init__(self, status: ExitStatus) -> None:
        super().__init__(status)
        self.status = status

    def __str__(self) -> str:
        return f"the child {self.status._words()} before its function returned"


class FunctionChild(Generic[_T]):
    """A child that runs a Python function.

    As a context manager it is waited for at the end of the block; its result can be asked for also
    after that. When it is dropped it goes on.

    Attributes:
        child: the `Child`, with its pidfd.
    """

    def __init__(self, child: Child, result: Descriptor, setup: Program) -> None:
        self.child = child
        self._file = result
        self._setup = setup
        self._lock = threading.Lock()
        self._outcome: tuple[Any, ...] | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self.child.pid

    def fileno(self) -> int:
        """Return the pidfd, for select, selectors and asyncio."""
        return self.child.fileno()

    def result(self, timeout: float | None = None) -> _T:
        """Wait for what the function returns.

        Args:
            timeout: seconds, None for ever.

        Returns:
            The value. Large buffers in it (numpy arrays, bytearrays) are not copied.

        Raises:
            BaseException: what the function raised, with the child's traceback as its cause.
            ChildError: a step of its setup failed.
            ChildDiedError: the child ended before.
            TimeoutError: it still runs; see `kill`.
        """
        outcome = self._wait(timeout)
        if outcome[0] == "value":
            value: _T = outcome[1]
            return value
        if outcome[0] == "failed":
            raise setup_error(self._setup, *outcome[1:])
        raise outcome[1] from RemoteTraceback(outcome[2])

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and return what the function raised.

        Args:
            timeout: seconds, None for ever.

        Returns:
            The exception, or None if the function returned.

        Raises:
            ChildDiedError, TimeoutError: as `result`.
        """
        outcome = self._wait(timeout)
        if outcome[0] == "failed":
            return setup_error(self._setup, *outcome[1:])
        return None if outcome[0] == "value" else outcome[1]

    def _wait(self, timeout: float | None) -> tuple[Any, ...]:
        if self._outcome is None:
            lost = status = None
            try:
                status = self.child.wait(timeout)
            except ChildProcessError as error:  # it has ended, and there may be a result
                lost = error
            with self._lock:  # of several threads one reads it
                if self._outcome is None:
                    self._outcome = self._read(status, lost)
                    self.close()
        if self._outcome[0] == "unreadable":
            raise self._outcome[1]
        return self._outcome

    def _read(self, status: ExitStatus | None, lost: ChildProcessError | None) -> tuple[Any, ...]:
        try:
            outcome: tuple[Any, ...] = _values.load(self._file.number)
        except _values.UnfinishedError:
            return "unreadable", lost if status is None else ChildDiedError(status)
        except Exception as error:  # noqa: BLE001 - what unpickling raises
            return "unreadable", error
        return outcome

    def kill(self) -> None:
        """Send SIGKILL."""
        self.child.kill()

    def close(self) -> None:
        """Let go of it, as `Child.close`."""
        self._file.close()
        self.child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the child, and let go of it."""
        if self._outcome is None and self._file.number >= 0:
            try:
                with suppress(Exception):  # it is told when it is asked for
                    self._wait(None)
            finally:
                self.close()

    def __repr__(self) -> str:
        return f"<ramet.FunctionChild {self.child!r}>"


def setup_error(setup: Program, step: int, result: int) -> OSError:
    """Say what has failed before a function of a child was called.

    Args:
        setup: the setup of the child.
        step: of that; -1 for what comes before it.
        result: of the step, -errno.
    """
    if step < 0:
        text = f"{os.strerror(-result)}: the child can't have these descriptors, and no others"
        return OSError(-result, text)
    return setup._error(step, result)


class _Caller:
    """What can be asked of a zygote, with options or without."""

    _seconds: float | None = None

    def _begin(self, work: tuple[Any, ...]) -> FunctionChild[Any]:
        """Start a child that is killed when it is dropped."""
        raise NotImplementedError

    def start(
        self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> FunctionChild[_T]:
        """Run a function in a fresh child.

        Args:
            fn: the function; it travels by pickle, or by cloudpickle where that is installed.
            args: its arguments.
            kwargs: its keyword arguments.

        Returns:
            The child.

        Raises:
            ZygoteError: the zygote cannot be started, or has ended just now.
            OSError: the kernel refuses the child.
            Exception: what pickle raises for what it cannot carry.
        """
        started = self._begin((fn, args, kwargs))
        started.child._kill = started.child._quiet = False
        return started

    def call(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a function in a fresh child, and return what it returns: ``start(...).result()``.

        If this is interrupted the child is killed.

        Args:
            fn: as of `start`.
            args: its arguments.
            kwargs: its keyword arguments.

        Returns:
            What it returns.

        Raises:
            TimeoutError: it took longer than the timeout of `Zygote.using`; the child was killed.
            BaseException: as `start`, and `FunctionChild.result`.
        """
        child = self._begin((fn, args, kwargs))
        try:
            result: _T = child.result(self._seconds)
            return result
        except BaseException:
            if child._outcome is None:
                child.kill()
                child.child.wait()
            raise
        finally:
            child.close()

    def map(
        self, fn: Callable[..., _T], *iterables: Iterable[Any], workers: int | None = None
    ) -> Iterator[_T]:
        """Run a function for each item, in a fresh child each, several at a time.

        Args:
            fn: the function.
            iterables: its arguments, as of the builtin map.
            workers: how many children there are at a time; by default as many as processors.

        Returns:
            The results in their order.

        Raises:
            BaseException: as `FunctionChild.result`, when the item's turn comes.
        """
        with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
            yield from pool.map(lambda *args: self.call(fn, *args), *iterables)


class Zygote(_Caller):
    """An interpreter that has imported what its children need, and makes them of itself.

    It can be used by several threads. As a context manager it ends at the end of the block; its
    children go on. When it dies, what is asked of it at that time fails with `ZygoteError`, and the
    next request starts another.
    """

    _foreign = False  # it is in a sandbox: the child of another process, as are its children

    def __init__(
        self,
        preload: Iterable[str] = (),
        *,
        flags: int = 0,
        env: Mapping[str, str] | None = None,
        main: bool = True,
        timeout: float | None = None,
        ahead: bool = True,
    ) -> None:
        """Prepare; the zygote is started by the first request, or by `warm_up`.

        Args:
            preload: modules that it imports once. They may not start threads: variables that keep
                libraries for linear algebra from it are set to 1.
            flags: `CloneFlags`: namespaces of the zygote, and thereby of all its children.
            env: its environment; by default that of this process.
            main: also import the main module of this program, as multiprocessing does, so that
                functions of it can be run.
            timeout: seconds that the start of the zygote may take, with all imports.
            ahead: when two requests in a row were alike, have a child ready for a third, made while
                nobody waits for it. Requests are alike if their flags are; children with
                namespaces that start as copies of others (all but NEWPID, NEWIPC, NEWUSER), or in a
                cgroup of their own, are made when they are asked for. What is done to the zygote
                by its pid, such as prlimit, is as it was when the child was made.
        """
        if isinstance(preload, str):
            raise TypeError("preload must be names of modules, not a string")
        self._preload = tuple(preload)
        self._flags = operator.index(flags)
        if self._flags & _NEWPID:
            raise ValueError(
                "CLONE_NEWPID: the first process of a pid namespace has no siblings, which the "
                "children of a zygote are: give it to using"
            )
        self._env = None if env is None else dict(env)
        self._main = main
        self._has_main = main and _main_module() is not None
        self._timeout = check_timeout(timeout)
        self._lock = threading.RLock()
        self._busy = False
        self._ahead = ahead
        self._process: Child | None = None
        self._nursery: Nursery | None = None
        self._options = Options()
        _zygotes.add(self)

    def using(
        self,
        *,
        flags: int = 0,
        uid_map: IdMap | None = None,
        gid_map: IdMap | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        fds: Mapping[int, File] | None = None,
        rlimits: Mapping[int, int | tuple[int, int]] | None = None,
        umask: int = -1,
        user: int | str | None = None,
        group: int | str | None = None,
        extra_groups: Iterable[int | str] | None = None,
        nice: int | None = None,
        affinity: Iterable[int] | None = None,
        scheduler: tuple[int, int] | None = None,
        ioprio: tuple[int, int] | None = None,
        start_new_session: bool = False,
        process_group: int | None = None,
        no_new_privs: bool = False,
        hostname: str | None = None,
        cgroup: int | str | os.PathLike[str] | HasFileno | None = None,
        before_run: Callable[[Program], object] | None = None,
        timeout: float | None = None,
    ) -> BoundZygote:
        """Bind options to this zygote, for children that have them.

        Args:
            flags: `CloneFlags`: namespaces.
            uid_map: as of `ramet.spawn`, as are the following, but for what is said.
            gid_map: group ids of a new user namespace.
            cwd: the working directory.
            env: the environment.
            fds: descriptors by their numbers in the child, beside 0, 1 and 2, which are ours.
            rlimits: limits.
            umask: file mode creation mask.
            user: a user to change to.
            group: a group to change to.
            extra_groups: supplementary groups.
            nice: the nice value.
            affinity: processors.
            scheduler: policy and priority.
            ioprio: class and level of I/O.
            start_new_session: call setsid.
            process_group: call setpgid.
            no_new_privs: let no exec give privileges.
            hostname: needs NEWUTS.
            cgroup: the cgroup v2 directory to start in.
            before_run: is given the `Program` of all this, to add steps, which come last. The child
                has copies of the buffers that they refer to. They may not exec.
            timeout: seconds that `BoundZygote.call` waits before it kills the child.

        Raises:
            KeyError: there is no such user or group.
            TypeError, ValueError: an option of a wrong kind, or that does not go with another.
        """
        flags = operator.index(flags)
        check_flags_of_copy(flags)
        groups = None if extra_groups is None else tuple(map(group_id, extra_groups))
        steps = {
            "hostname": hostname,
            "cwd": None if cwd is None else os.path.abspath(cwd),
            "umask": umask,
            "start_new_session": start_new_session,
            "process_group": process_group,
            "rlimits": None if rlimits is None else tuple(rlimits.items()),
            "scheduler": scheduler,
            "nice": nice,
            "affinity": None if affinity is None else frozenset(affinity),
            "ioprio": ioprio,
            "groups": groups,
            "gid": None if group is None else group_id(group),
            "uid": None if user is None else user_id(user),
            "no_new_privs": no_new_privs,
        }
        if uid_map is not None or gid_map is not None:
            flags |= _NEWUSER
        options = Options(
            flags=flags,
            env=None if env is None else dict(env),
            fds={} if fds is None else check_fds(fds),
            cgroup=cgroup,
            id_maps=(uid_map, gid_map),
            steps=steps,
            before_run=before_run,
        )
        return BoundZygote(self, options, check_timeout(timeout))

    # --- its life ---------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Start the zygote now, and wait until it has imported everything.

        Raises:
            ZygoteError: it cannot be started, or an import fails or starts threads.
        """
        self._alone(self._running)

    @property
    def pid(self) -> int | None:
        """The process id of the zygote, None if it does not run."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the zygote; its children go on."""
        self._alone(self._end)

    def _alone(self, do: Callable[..., _T], *args: Any) -> _T:
        """Do something with the zygote while no other thread does, nor a handler of a signal."""
        with self._lock:
            if self._busy:
                raise RuntimeError("this thread is in the middle of a request to the zygote")
            try:
                self._busy = True
                return do(*args)
            finally:
                self._busy = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self._end()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a zygote's children are those of its process: make one where it is used")

    # --- the other side ---------------------------------------------------------------------

    def _begin(self, work: tuple[Any, ...]) -> FunctionChild[Any]:
        return self._start(self._options, work)

    def _start(self, options: Options, work: tuple[Any, ...]) -> FunctionChild[Any]:
        result = _values.new_file("result")
        child, program = self._order(options, work, result)
        return FunctionChild(child, result, program)

    def _order(
        self,
        options: Options,
        work: tuple[Any, ...],
        result: Descriptor,
        fds: Mapping[int, File] = MappingProxyType({}),
        prepare: Callable[[Child], object] | None = None,
    ) -> tuple[Child, Program]:
        """Start a child that is killed when it is dropped, and return it with its setup.

        Args:
            options: its options.
            work: a function, its arguments, and its keyword arguments.
            result: the file for what becomes of it.
            fds: descriptors that it has in any case, also 0, 1 and 2.
            prepare: is given the child before that is told its work.
        """
        files = [result]
        try:
            by_value = not self._has_main and getattr(work[0], "__module__", "") == "__main__"
            inline, buffers = _values.encode((*work, options.env), by_value=by_value)
            if buffers or len(inline) > _MOST_INLINE:
                files.append(_values.new_file("function"))
                _values.write(inline, buffers, files[1].number)
                inline = b""
            made = options.prepare()
            numbers, descriptors = options.descriptors({**made.fds, **fds})
            directory, cgroup = cgroup_descriptor(options.cgroup)
            flags = options.flags | _PARENT | (_INTO_CGROUP if cgroup >= 0 else 0)
            sent = [*(file.number for file in files), *descriptors]
            if len(sent) > _native.most_descriptors:
                raise ValueError(f"at most {_native.most_descriptors} descriptors can be passed")
            head = _WORK.pack(len(files), len(numbers), len(made.places) // 8, len(made.image))
            targets = struct.pack(f"={len(numbers)}q", *numbers)
            message = b"".join([head, targets, made.places, made.image, inline])
            if len(message) > _native.longest_work:
                raise ValueError("the setup of a child has at most about 32 KiB")

            def make(call: Call, use_clone: bool) -> Child | int:
                order = call.flags, use_clone, cgroup, message, sent, prepare
                return self._alone(self._ask, *order)

            child = make_call(make, Call(0, 0, flags, 0, cgroup=cgroup))
            del directory
            if made.maps is not None:
                made.maps.write(child)
            return child, made.program
        finally:
            for file in files[1:]:
                file.close()

    def _ask(self, *order: Any) -> Child | int:
        child = self._running().start(*order)
        if child is None:
            raise self._died()
        return child

    def _running(self) -> Nursery:
        """Return where its children are; the zygote is started if there is none."""
        if self._nursery is not None and self._process is not None:
            if self._process.poll() is None:
                return self._nursery
            self._end()
        if _zygote_main.importing_main:
            raise RuntimeError(
                "the main module starts a zygote while it is imported by one: what it does, beside "
                'to define things, belongs under if __name__ == "__main__":'
            )
        deadline = deadline_after(self._timeout)
        # Where a fork finds it.
        nursery = self._nursery = Nursery(ahead=self._ahead, foreign=self._foreign)
        try:
            words = self._spawn(nursery, deadline)
        except BaseException as error:
            if self._process is not None:
                self._process.kill()
            self._end()
            if isinstance(error, TimeoutError):
                text = f"the zygote was not ready after {self._timeout} seconds"
                raise ZygoteError(text) from None
            raise
        if not words:
            raise self._died()
        if words != READY:
            self._end()
            raise ZygoteError(words.decode(errors="replace"))  # it may be cut off
        return nursery

    def _spawn(self, nursery: Nursery, deadline: float | None) -> bytes:
        """Start the zygote, and return what it says."""
        channel, births = nursery.descriptors
        told = _values.new_file("told")
        _values.dump(self._told(), told.number)
        args = [sys.executable, *_interpreter_options(), "-c", _CODE]
        self._process = self._launch(args, {_CHANNEL: channel, _FILE: told.number, _BIRTHS: births})
        self._process._quiet = self._process._kill = True
        return nursery.hear(None if deadline is None else max(deadline - time.monotonic(), 0))

    def _launch(self, args: list[str], fds: Mapping[int, int]) -> Child:
        """Start a process of which the zygote is one, or that ends with it."""
        return spawn(args, fds=fds, env=self._env, flags=self._flags, timeout=self._timeout)

    def _told(self) -> dict[str, Any]:
        main = _main_module() if self._main else None
        if self._main:  # by this name the children know the classes of it
            sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
        process = sys.modules.get("multiprocessing.process")
        return {
            "path": sys.path,
            "preload": self._preload,
            "main": main,
            "argv": sys.argv,
            "distrusted": self._foreign,
            # By which processes of multiprocessing know each other.
            "authkey": None if process is None else bytes(process.current_process().authkey),
        }

    def _died(self) -> ZygoteError:
        process = self._process
        status = None
        if process is not None:
            with suppress(TimeoutError):
                status = process.wait(1)
        self._end()
        how = "is gone" if status is None else f"was {status._words()}" if status.signal else (
            f"has {status._words()}"
        )  # fmt: skip
        return ZygoteError(f"the zygote {how}")

    def _end(self) -> None:
        process, nursery = self._process, self._nursery
        try:
            # The garbage collector may have dropped us together, and closed some.
            with suppress(ValueError, OSError):
                if nursery is not None:
                    nursery.close(-1 if process is None else process._pidfd)
                if process is not None:
                    process.wait(1)
        finally:  # what was interrupted goes on when these are dropped
            self._process = self._nursery = None


_zygotes: WeakSet[Zygote] = WeakSet()


def _after_fork_in_child() -> None:
    """Leave the zygotes to the process that has started them; whoever held a lock is not here."""
    for zygote in _zygotes:
        zygote._lock, zygote._busy = threading.RLock(), False
        if zygote._nursery is not None:
            zygote._nursery.forget()
        zygote._process = zygote._nursery = None


os.register_at_fork(after_in_child=_after_fork_in_child)


class BoundZygote(_Caller):
    """A zygote with options for its children, made by `Zygote.using`."""

    def __init__(self, zygote: Zygote, options: Options, timeout: float | None) -> None:
        self._zygote = zygote
        self._options = options
        self._seconds = timeout

    def _begin(self, work: tuple[Any, ...]) -> FunctionChild[Any]:
        return self._zygote._start(self._options, work)


class _Setup(NamedTuple):
    """The setup of a child, laid out for it."""

    program: Program
    image: bytes
    places: bytes
    fds: Mapping[int, File] = MappingProxyType({})  # which it needs for this
    maps: IdMaps | None = None  # to be written by this process
    parent: Descriptor | None = None  # of which fds has the number


def _lay_out(program: Program) -> _Setup:
    return _Setup(program, *(program._portable() if len(program) else (b"", b"")))


# What `setup` wants, and a child of a zygote need not have.
_NO_STEPS: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("hostname", "cwd", "process_group", "rlimits", "scheduler", "nice", "affinity"),
            *("ioprio", "groups", "gid", "uid", "pdeathsig"),
        )
    ),
    "new_time": 0,
    "umask": -1,
    **dict.fromkeys(("restore_signals", "start_new_session", "no_new_privs"), False),
}


class Options:
    """What a child of a zygote has of its own, checked."""

    def __init__(
        self,
        *,
        flags: int = 0,
        env: dict[str, str] | None = None,
        fds: Mapping[int, File] = MappingProxyType({}),
        cgroup: int | str | os.PathLike[str] | HasFileno | None = None,
        id_maps: tuple[IdMap | None, IdMap | None] = (None, None),
        steps: Mapping[str, Any] | None = None,
        before_run: Callable[[Program], object] | None = None,
        program: Program | None = None,
    ) -> None:
        """Prepare; `program` is all of its setup, in the place of `steps`."""
        self.flags = flags
        self.cgroup = cgroup
        self.env = env
        self._fds = fds
        self._id_maps = id_maps
        self._steps = {**_NO_STEPS, **(steps or {})}
        self._before_run = before_run
        first = self._make() if program is None else _lay_out(program)
        self._always = None if first.maps is not None else first

    def prepare(self) -> _Setup:
        """Give the setup of the next child: that of the others, unless we write its id maps."""
        return self._always or self._make()

    def _make(self) -> _Setup:
        uid_map, gid_map = self._id_maps
        maps = parent = None
        fds: dict[int, File] = {}
        if uid_map is not None or gid_map is not None:
            maps = IdMaps(uid_map, gid_map, groups=self._steps["groups"] is not None)
        if maps is not None and maps.by_parent:
            parent = Descriptor.this_process()
            spare = (number for number in count(3) if number not in self._fds)
            fds = {next(spare): maps.number, next(spare): parent.number}
            maps.gate, parent_pidfd = fds
        else:
            parent_pidfd = None
        program: Program = setup.__wrapped__(
            maps=maps, parent_pidfd=parent_pidfd, descriptors=(), closes=False, **self._steps
        )
        for number in fds:
            program.close(number)
        if self._before_run is not None:
            self._before_run(program)
        return _lay_out(program)._replace(fds=fds, maps=maps if fds else None, parent=parent)

    def descriptors(self, more: Mapping[int, File]) -> tuple[list[int], list[int]]:
        """List the numbers in the child, and ours that stand for them now."""
        wanted: dict[int, int] = {}
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:
                continue  # it is closed, and stays so
            wanted[number] = number
        for number, file in (*self._fds.items(), *more.items()):
            wanted[number] = file if isinstance(file, int) else file.fileno()
            os.fstat(wanted[number])  # what is bad is so here, and not for the zygote
        return list(wanted), list(wanted.values())


def _main_module() -> tuple[str, str] | None:
    """Find out how another interpreter can import the main module of this program."""
    module = sys.modules["__main__"]
    spec = getattr(module, "__spec__", None)
    if spec is not None:
        # That of a package, or of a directory or zip file, runs what is not guarded.
        return None if spec.name.split(".")[-1] == "__main__" else ("module", spec.name)
    path = getattr(module, "__file__", None)
    return None if path is None or not os.path.exists(path) else ("path", os.path.abspath(path))


def _interpreter_options() -> list[str]:
    """Pass on how this interpreter was started."""
    import subprocess  # noqa: PLC0415

    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined,no-any-return]
