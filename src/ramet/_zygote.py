"""Zygote: Python functions in fresh children of a warmed interpreter, which are ours.

The zygote is started by exec, has one thread, imports what it is told to once, and copies itself
for each request with CLONE_PARENT: so the child has our process for its parent, and costs the same
whatever the size of that, and whatever its threads do. The other side is _zygote_main.
"""

from __future__ import annotations

import operator
import os
import pickle
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar

from ramet import _native, _values
from ramet._child import Child, ExitStatus
from ramet._clone import HasFileno, cgroup_descriptor
from ramet._fork import check_flags_of_copy
from ramet._spawn import group_id, spawn, user_id
from ramet._zygote_main import LONGEST_MESSAGE, MOST_DESCRIPTORS, Request

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PID = struct.Struct("=q")
_CODE = "from ramet._zygote_main import main; main({})"
_CHANNEL = 3


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

    As a context manager it is waited for at the end of the block. When it is dropped it goes on.

    Attributes:
        child: the `Child`, with its pidfd.
    """

    def __init__(self, child: Child, result: int) -> None:
        self.child = child
        self._file = os.fdopen(result, "rb", buffering=0)
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
            ChildDiedError: the child ended before.
            TimeoutError: it still runs; see `kill`.
        """
        outcome = self._wait(timeout)
        if outcome[0] == "value":
            value: _T = outcome[1]
            return value
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
        return None if outcome[0] == "value" else outcome[1]

    def _wait(self, timeout: float | None) -> tuple[Any, ...]:
        if self._outcome is None:
            status = self.child.wait(timeout)
            try:
                self._outcome = _values.load(self._file.fileno())
            except _values.UnfinishedError:
                raise ChildDiedError(status) from None
            self.close()
        return self._outcome

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
        if self._outcome is None and not self._file.closed:
            try:
                self.child.wait()
            finally:
                self.close()

    def __repr__(self) -> str:
        return f"<ramet.FunctionChild {self.child!r}>"


class Zygote:
    """An interpreter that has imported what its children need, and makes them of itself.

    It can be used by several threads. As a context manager it ends at the end of the block; its
    children go on. When it dies, what is asked of it at that time fails with `ZygoteError`, and the
    next request starts another.
    """

    def __init__(
        self,
        preload: Iterable[str] = (),
        *,
        flags: int = 0,
        env: Mapping[str, str] | None = None,
        main: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Prepare; the zygote is started by the first request, or by `warm_up`.

        Args:
            preload: modules that it imports once. They may not start threads: variables that keep
                libraries for linear algebra from it are set to 1.
            flags: `CloneFlags`: namespaces of the zygote, and thereby of all its children.
            env: its environment; by default that of this process.
            main: also import the main module of this program, as multiprocessing does, so that
                functions of it can be run.
            timeout: seconds that the start of the zygote may take, until it execs.
        """
        self._preload = tuple(preload)
        self._flags = operator.index(flags)
        self._env = None if env is None else dict(env)
        self._main = main
        self._timeout = timeout
        self._lock = threading.Lock()
        self._process: Child | None = None
        self._channel: socket.socket | None = None
        self._pid = os.getpid()
        self._options = _Options()

    # --- requests ---------------------------------------------------------------------------

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
        return self._start(self._options, (fn, args, kwargs))

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
            BaseException: as `start`, and `FunctionChild.result`.
        """
        value: _T = self._call(self._options, (fn, args, kwargs), None)
        return value

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
        count = workers or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(count) as pool:
            yield from pool.map(lambda *args: self.call(fn, *args), *iterables)

    def using(
        self,
        *,
        flags: int = 0,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        fds: Mapping[int, int | HasFileno] | None = None,
        rlimits: Mapping[int, int | tuple[int, int]] | None = None,
        umask: int = -1,
        user: int | str | None = None,
        group: int | str | None = None,
        extra_groups: Iterable[int | str] | None = None,
        nice: int | None = None,
        affinity: Iterable[int] | None = None,
        start_new_session: bool = False,
        no_new_privs: bool = False,
        hostname: str | None = None,
        cgroup: int | str | os.PathLike[str] | HasFileno | None = None,
        timeout: float | None = None,
    ) -> BoundZygote:
        """Bind options to this zygote, for children that have them.

        Args:
            flags: `CloneFlags`: namespaces.
            cwd: as of `ramet.spawn`, as are the following.
            env: the environment.
            fds: descriptors by their numbers in the child, beside 0, 1 and 2, which are ours.
            rlimits: limits.
            umask: file mode creation mask.
            user: a user to change to.
            group: a group to change to.
            extra_groups: supplementary groups.
            nice: the nice value.
            affinity: processors.
            start_new_session: call setsid.
            no_new_privs: let no exec give privileges.
            hostname: needs NEWUTS.
            cgroup: the cgroup v2 directory to start in.
            timeout: seconds that `BoundZygote.call` waits before it kills the child.

        Raises:
            KeyError: there is no such user or group.
            TypeError: an option of a wrong kind.
        """
        return BoundZygote(
            self,
            _Options(
                flags=operator.index(flags),
                cwd=None if cwd is None else os.path.abspath(cwd),
                env=None if env is None else dict(env),
                fds={} if fds is None else dict(fds),
                rlimits=None if rlimits is None else tuple(rlimits.items()),
                umask=umask,
                uid=None if user is None else user_id(user),
                gid=None if group is None else group_id(group),
                groups=None if extra_groups is None else tuple(map(group_id, extra_groups)),
                nice=nice,
                affinity=None if affinity is None else frozenset(affinity),
                start_new_session=start_new_session,
                no_new_privs=no_new_privs,
                hostname=hostname,
                cgroup=cgroup,
            ),
            timeout,
        )

    # --- its life ---------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Start the zygote now, and wait until it has imported everything.

        Raises:
            ZygoteError: it cannot be started, or an import fails or starts threads.
        """
        with self._lock:
            self._running()

    @property
    def pid(self) -> int | None:
        """The process id of the zygote, None if it does not run."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the zygote; its children go on."""
        with self._lock:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_channel", None) is not None:
            self._end()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a zygote's children are those of its process: make one where it is used")

    # --- the other side ---------------------------------------------------------------------

    def _call(self, options: _Options, work: tuple[Any, ...], timeout: float | None) -> Any:
        child = self._start(options, work)
        try:
            return child.result(timeout)
        except BaseException:
            if child._outcome is None:
                child.kill()
                child.child.wait()
            raise
        finally:
            child.close()

    def _start(self, options: _Options, work: tuple[Any, ...]) -> FunctionChild[Any]:
        flags = options.flags
        check_flags_of_copy(flags)
        files = [_values.new_file("function"), _values.new_file("result")]
        try:
            _values.dump(work, files[0])
            numbers, descriptors = options.descriptors()
            directory, cgroup = cgroup_descriptor(options.cgroup)
            request = Request(flags, numbers, options.env, options.setup, cgroup >= 0)
            sent = [*files, *descriptors, *([cgroup] if cgroup >= 0 else [])]
            if len(sent) > MOST_DESCRIPTORS:
                raise ValueError(f"at most {MOST_DESCRIPTORS} descriptors can be passed")
            child = self._ask(pickle.dumps(request), sent)
            del directory
            return FunctionChild(child, files.pop())
        finally:
            for file in files:
                os.close(file)

    def _ask(self, message: bytes, descriptors: Sequence[int]) -> Child:
        if len(message) > LONGEST_MESSAGE:
            raise ValueError("the options of a child are too long: env has at most about 60 KB")
        with self._lock:
            channel = self._running()
            try:
                socket.send_fds(channel, [message], descriptors)
                answer, child = _native.receive(Child, channel.fileno())
            except ConnectionError:
                answer, child = b"", None
            except BaseException:
                self._end()  # an answer that nobody waits for would be taken for the next one's
                raise
            if not answer:
                raise self._died()
        if child is None:
            raise pickle.loads(answer[_PID.size :])  # noqa: S301 - of our zygote
        return child

    def _running(self) -> socket.socket:
        """Return the channel to the zygote, which is started if there is none."""
        if self._pid != os.getpid():  # a fork: it is the zygote of our parent
            self._process = self._channel = None
            self._pid = os.getpid()
        if self._channel is not None and self._process is not None:
            if self._process.poll() is None:
                return self._channel
            self._end()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            process = spawn(
                [sys.executable, *_interpreter_options(), "-c", _CODE.format(_CHANNEL)],
                fds={_CHANNEL: theirs},
                env=self._env,
                flags=self._flags,
                timeout=self._timeout,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        process._quiet = True
        self._process, self._channel = process, ours
        try:
            ours.send(pickle.dumps(self._told()))
            answer = ours.recv(LONGEST_MESSAGE)
        except ConnectionError:
            answer = b""
        except BaseException:
            self._end()
            raise
        if not answer:
            raise self._died()
        if len(answer) > _PID.size:
            self._end()
            raise ZygoteError(answer[_PID.size :].decode())
        return ours

    def _told(self) -> dict[str, Any]:
        main = None
        if self._main:
            from multiprocessing import spawn as standard  # noqa: PLC0415

            main = standard.get_preparation_data("zygote")
            for name in ("log_to_stderr", "log_level", "orig_dir", "authkey"):
                main.pop(name, None)
        return {"path": sys.path, "preload": self._preload, "main": main}

    def _died(self) -> ZygoteError:
        process = self._process
        status = None if process is None else process.wait()
        self._end()
        how = "is gone" if status is None else f"was {status._words()}" if status.signal else (
            f"has {status._words()}"
        )  # fmt: skip
        return ZygoteError(f"the zygote {how}")

    def _end(self) -> None:
        channel, self._channel = self._channel, None
        process, self._process = self._process, None
        if channel is not None:
            channel.close()
        if process is not None:
            if self._pid == os.getpid() and process.poll() is None:
                try:
                    process.wait(1)  # it ends by itself, unless it hangs in an import
                except TimeoutError:
                    process.kill()
                    process.wait()
            process.close()


class BoundZygote:
    """A zygote with options for its children, made by `Zygote.using`."""

    def __init__(self, zygote: Zygote, options: _Options, timeout: float | None) -> None:
        self._zygote = zygote
        self._options = options
        self._timeout = timeout

    def start(
        self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> FunctionChild[_T]:
        """Run a function in a fresh child, as `Zygote.start`.

        Args:
            fn: the function.
            args: its arguments.
            kwargs: its keyword arguments.

        Raises:
            Exception: as `Zygote.start`.
        """
        return self._zygote._start(self._options, (fn, args, kwargs))

    def call(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a function in a fresh child, as `Zygote.call`.

        Args:
            fn: the function.
            args: its arguments.
            kwargs: its keyword arguments.

        Raises:
            TimeoutError: it took longer than the timeout; the child has been killed.
            BaseException: as `FunctionChild.result`.
        """
        value: _T = self._zygote._call(self._options, (fn, args, kwargs), self._timeout)
        return value


class _Options:
    """What a child of a zygote has of its own, checked."""

    def __init__(
        self,
        *,
        flags: int = 0,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        fds: dict[int, int | HasFileno] | None = None,
        rlimits: tuple[tuple[int, int | tuple[int, int]], ...] | None = None,
        umask: int = -1,
        uid: int | None = None,
        gid: int | None = None,
        groups: tuple[int, ...] | None = None,
        nice: int | None = None,
        affinity: frozenset[int] | None = None,
        start_new_session: bool = False,
        no_new_privs: bool = False,
        hostname: str | None = None,
        cgroup: int | str | os.PathLike[str] | HasFileno | None = None,
    ) -> None:
        self.flags = flags
        self.env = env
        self.cgroup = cgroup
        self._fds = fds or {}
        self.setup = {
            "hostname": hostname,
            "cwd": cwd,
            "umask": umask,
            "start_new_session": start_new_session,
            "rlimits": rlimits,
            "nice": nice,
            "affinity": affinity,
            "groups": groups,
            "gid": gid,
            "uid": uid,
            "no_new_privs": no_new_privs,
        }

    def descriptors(self) -> tuple[tuple[int, ...], list[int]]:
        """List the numbers in the child, and ours that stand for them now."""
        wanted: dict[int, int] = {}
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:
                continue  # it is closed, and stays so
            wanted[number] = number
        for number, file in self._fds.items():
            wanted[number] = file if isinstance(file, int) else file.fileno()
        return tuple(wanted), list(wanted.values())


def _interpreter_options() -> list[str]:
    """Pass on how this interpreter was started."""
    import subprocess  # noqa: PLC0415

    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined,no-any-return]
