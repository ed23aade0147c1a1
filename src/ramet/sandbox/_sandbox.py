"""Sandbox: a policy, and what can be run by it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from ramet._deadlines import check_timeout
from ramet._native import Descriptor
from ramet._spawn import File, check_args, check_fds
from ramet._steps import Path
from ramet.sandbox._plan import Plan, make_plan
from ramet.sandbox._policy import Policy
from ramet.sandbox._run import Started, run, start
from ramet.sandbox._verdict import CallError, Protection, ProtectionError, Verdict

_P = ParamSpec("_P")
_T = TypeVar("_T")

if TYPE_CHECKING:
    from ramet.sandbox._calls import InnerZygote
    from ramet.sandbox._popen import SandboxedPopen


class Sandbox(Policy, kw_only=True):
    """What programs may see, use and do; and the means to run them so.

    Immutable; can be compared, pickled, and used by several threads. All arguments are keywords,
    and attributes of the same names. `replace` makes another with some of them
    changed, `load` reads one from a file.

    Nothing is allowed that is not said here. A protection that the kernel, or this user, cannot
    give is a `ProtectionError` at the start unless it is optional.

    Args:
        files: what is in the root directory, by paths: `Bind`, `Overlay`, `Tmpfs`, `Directory`,
            `Symlink`, `File`, `Proc`, `Devices`. The rest of it is empty, and read-only. These
            take the place of what `system` and `python` have at the same paths.
        system: show the programs and libraries of this system, read-only: /usr, /bin and so on, and
            a few files of /etc. Also a /proc, a minimal /dev, and a /tmp of 64 MiB.
        python: show the running interpreter, its packages, and the system's libraries, read-only;
            and the same /proc, /dev and /tmp.
        cwd: the working directory.
        env: the environment, empty by default. Programs are then looked for in /bin and /usr/bin.
        uid: the user id inside.
        gid: the group id inside.
        uid_map: user ids of the sandbox: triples of the first id inside, the first outside, and how
            many. By default there is just `uid`, which outside is this user, or nobody (65534) if
            this is root.
        gid_map: the same for group ids.
        hostname: the host name.
        network: ``"none"``: just a loopback device, of its own; ``"host"``: all that this machine
            has.
        share: namespaces that it has in common with us, of ``"ipc"``, ``"uts"``, ``"cgroup"``.
            Those for users, mounts and processes are always its own.
        capabilities: names of those that the program has, in its own namespaces.
        seccomp: filter system calls: those that containers deny fail with EPERM. What is newer than
            this build does not exist (ENOSYS).
        allow_syscalls: names of those that are allowed all the same.
        deny_syscalls: names of more that fail with EPERM.
        seccomp_filters: more filters, as classic BPF programs (struct sock_filter).
        landlock: rules for files that say the same as the mounts, as a second line.
        rlimits: limits of each process by names in small letters, without RLIMIT (``"nofile"``):
            one number for both, or soft and hard. There are no core dumps unless ``"core"`` is
            given.
        memory: bytes that all of the sandbox may use; with more it is killed. It needs a cgroup.
        swap: bytes of swap beyond that, by default none.
        processes: how many processes and threads there may be.
        cpu: processors' worth of time that it may use, such as 0.5. It needs a cgroup.
        cgroup: the directory of cgroup v2 in which one is made for each start; by default our own,
            or the nearest above it, if it is delegated to us with the controllers.
        cpu_time: seconds of processor time that all of the sandbox may use.
        wall_time: seconds that a run may take.
        output_size: bytes that stdout and stderr together may have, where `run` keeps them.
        file_size: bytes that a file may have that is written to.
        preload: modules that the interpreter for `call` has imported. They may not start threads.
        require: the protections that may not be missing; all others may.
        optional: the protections that may be missing, of ``network``, ``ipc``, ``uts``,
            ``cgroup_namespace``, ``seccomp``, ``landlock``, ``memory``, ``swap``, ``processes`` and
            ``cpu``. The receipt tells of it. Without the others there is no sandbox.

    Raises:
        FileNotFoundError: a file or directory to show is not there.
        TypeError, ValueError: something that there is not, or that does not go together.
        RuntimeError: lists of system calls, without libseccomp.

    Source: namespaces(7), user_namespaces(7), seccomp(2), landlock(7), cgroups(7).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_plans", {})
        object.__setattr__(self, "_zygotes", {})

    def _plan(self, targets: tuple[int, ...] = ()) -> Plan:
        """Compile the policy, once for each user and each set of descriptors."""
        plans: dict[Any, Plan] = self._plans  # type: ignore[attr-defined]
        key = os.geteuid(), os.getegid(), targets
        plan = plans.get(key)
        if plan is None:
            plan = plans[key] = make_plan(self, targets)
        return plan

    @property
    def receipt(self) -> tuple[Protection, ...]:
        """What is enforced here.

        Raises:
            ProtectionError: something that is required cannot be had.
        """
        return self._plan().receipt

    def explain(self) -> str:
        """Render the program that makes the sandbox, a line for each step. Starts nothing.

        Raises:
            ProtectionError: something that is required cannot be had.
        """
        return str(self._plan().program)

    # --- programs ---------------------------------------------------------------------------

    def run(
        self,
        args: Sequence[Path],
        input: bytes | None = None,  # noqa: A002 - subprocess's name
        timeout: float | None = None,
        *,
        stdin: File | None = None,
        stdout: File | None = None,
        stderr: File | None = None,
        fds: Mapping[int, File] | None = None,
    ) -> Verdict:
        """Run a program, and wait for it.

        At its end, and if this is interrupted, all that is in the sandbox is killed.

        Args:
            args: the program and its arguments. It is looked for in the sandbox, along the PATH of
                `env`.
            input: what it reads; nothing by default.
            timeout: seconds that it may take, if `wall_time` is not less; then it is killed.
            stdin: a descriptor of ours that it reads, in the place of `input`.
            stdout: a descriptor of ours that it writes to; by default what it writes is kept.
            stderr: the same.
            fds: more descriptors that it has, by their numbers there. What they lead to is not
                protected; directories are refused. Of all descriptors: without Landlock a file that
                is open for reading can be opened for writing, if its modes allow it.

        Returns:
            The verdict; also if the program could not be started.

        Raises:
            ProtectionError: a protection that is required cannot be had; nothing was started.
            TypeError, ValueError: bad arguments.
            OSError: a descriptor that there is not, or no room for more.
        """
        return self._run(args, input, timeout, {0: stdin, 1: stdout, 2: stderr}, fds)

    def _run(
        self,
        args: Sequence[Path],
        data: bytes | None,
        timeout: float | None,
        standard: Mapping[int, File | None],
        fds: Mapping[int, File] | None,
        cancel: int | None = None,
    ) -> Verdict:
        if data is not None and standard[0] is not None:
            raise ValueError("stdin and input can't both be given")
        return run(
            self,
            self._plan,
            args,
            data=b"" if data is None else bytes(memoryview(data)),
            streams={**standard, **_more_fds(fds)},
            timeout=self._seconds(timeout),
            cancel=cancel,
        )

    def _seconds(self, timeout: float | None) -> float | None:
        """The time that a run may take."""
        times = [each for each in (check_timeout(timeout), self.wall_time) if each is not None]
        return min(times, default=None)

    async def run_async(
        self,
        args: Sequence[Path],
        input: bytes | None = None,  # noqa: A002 - subprocess's name
        timeout: float | None = None,
        *,
        stdin: File | None = None,
        stdout: File | None = None,
        stderr: File | None = None,
        fds: Mapping[int, File] | None = None,
    ) -> Verdict:
        """Run a program, and wait for it without blocking the event loop.

        A thread of the loop's executor does it. If this is cancelled the sandbox is killed first.

        Args:
            args: as of `run`, as are all others.
            input: what it reads.
            timeout: seconds that it may take.
            stdin: a descriptor that it reads.
            stdout: a descriptor that it writes to.
            stderr: the same.
            fds: more descriptors.

        Returns:
            The verdict.

        Raises:
            Exception: as `run`.
        """
        # Not earlier: asyncio takes longer to import than all else here.
        import asyncio  # noqa: PLC0415
        from threading import Lock  # noqa: PLC0415

        gate, turn = Descriptor.gate(), Lock()

        def work() -> Verdict | None:
            if not turn.acquire(blocking=False):  # it was cancelled before there was a thread
                return None
            standard = {0: stdin, 1: stdout, 2: stderr}
            return self._run(args, input, timeout, standard, fds, gate.number)

        future = asyncio.get_running_loop().run_in_executor(None, work)
        try:
            verdict = await asyncio.shield(future)
        except asyncio.CancelledError:
            if not turn.acquire(blocking=False):
                os.eventfd_write(gate.number, 1)
                while not future.done():
                    with suppress(asyncio.CancelledError):  # again: there is no more to be done
                        await asyncio.wait([future])
                future.exception()  # nobody else asks for it
            raise
        assert verdict is not None  # noqa: S101 - for types: this was not cancelled
        return verdict

    def popen(
        self,
        args: Sequence[Path],
        *,
        stdin: File | None = None,
        stdout: File | None = None,
        stderr: File | None = None,
        pass_fds: Sequence[int] = (),
        bufsize: int = -1,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        pipesize: int = -1,
    ) -> SandboxedPopen:
        """Start a program, and leave it to the caller, who should wait for it.

        Args:
            args: as of `run`.
            stdin: as of subprocess.Popen, as are the following. By default it is ours.
            stdout: ``subprocess.PIPE``, a descriptor, and so on.
            stderr: the same.
            pass_fds: descriptors that it has, with the same numbers.
            bufsize: of the pipes' file objects.
            text: they are for text.
            encoding: of that.
            errors: of that.
            pipesize: bytes in the pipes.

        Returns:
            A `ramet.Popen`. Its return code is the program's; 127 if there is no such program. Its
            `kill` ends all that is in the sandbox.

        Raises:
            ProtectionError: one that is required cannot be had; a limit needs somebody who
                watches, as `run` does: `wall_time`, `cpu_time`, and `memory` without a cgroup.
            ChildError: a step of the start failed.
            TypeError, ValueError, OSError: as `run`.
        """
        from ramet.sandbox._popen import SandboxedPopen  # noqa: PLC0415 - it imports subprocess

        args = check_args(args)
        plan = self._plan(tuple(sorted(_more_fds({fd: fd for fd in pass_fds}))))
        unwatched = ["wall_time"] if self.wall_time is not None else []
        unwatched += sorted(plan.limits.sampled)
        for name in unwatched:
            raise ProtectionError(name, "nobody watches what popen starts; use run")
        return SandboxedPopen(
            partial(self._start, plan),
            args,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            bufsize=bufsize,
            text=text,
            encoding=encoding,
            errors=errors,
            pipesize=pipesize,
        )

    def _start(self, plan: Plan, args: list[Path], descriptors: Mapping[int, int]) -> Started:
        return start(self, plan, args, descriptors)

    # --- Python -----------------------------------------------------------------------------

    def call(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a Python function in the sandbox, and return what it returns.

        It runs in a fresh child of an interpreter that lives in the sandbox and has imported what
        `preload` names. That is started by the first call, or by `warm_up`, and ends with `close`.
        Each call has users, processes, tmpfs, overlays and limits of its own; the network and the
        host name are those of the sandbox. The function is the first process of its pid namespace:
        a signal that it sends to itself does nothing unless it has a handler. There is just `uid`
        and `gid`, whatever the maps have, and capabilities are for what the call has of its own.

        Args:
            fn: the function. It travels by pickle, so its module has to be in the sandbox; or by
                cloudpickle, where that is installed and the function is of the main module.
            args: its arguments.
            kwargs: its keyword arguments.

        Returns:
            What it returns, as data: None, numbers, strings, bytes, lists, tuples, dictionaries
            with strings for keys, arrays of numpy.

        Raises:
            CallError: it did not return: it raised an exception, ended, or was killed at a limit.
            ProtectionError: a protection that is required cannot be had.
            ValueError: there is no Python in the sandbox (`python`), or it has the capability
                sys_admin: with that a function could unmount what is its own.
            Exception: what pickle raises for what it cannot carry.
        """
        verdict = self.run_function(fn, args, kwargs)
        if not verdict.ok:
            raise CallError(verdict)
        value: _T = verdict.value
        return value

    def run_function(
        self,
        fn: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        input: bytes | None = None,  # noqa: A002 - subprocess's name
        timeout: float | None = None,
    ) -> Verdict:
        """Run a Python function as `call`, and tell what became of it.

        Args:
            fn: as of `call`.
            args: its arguments.
            kwargs: its keyword arguments.
            input: what it reads from its standard input.
            timeout: seconds that it may take, if `wall_time` is not less.

        Returns:
            The verdict, with what the function returned as its `value`, and what it printed.

        Raises:
            Exception: as `call`, but no `CallError`.
        """
        from ramet.sandbox._calls import call  # noqa: PLC0415 - not for programs

        return call(
            self._zygote(),
            (fn, tuple(args), dict(kwargs or {})),
            data=b"" if input is None else bytes(memoryview(input)),
            timeout=self._seconds(timeout),
        )

    def run_python(
        self,
        source: str,
        values: Mapping[str, Any] | None = None,
        *,
        input: bytes | None = None,  # noqa: A002 - subprocess's name
        timeout: float | None = None,
    ) -> Verdict:
        """Run Python source, as the main module, where `call` runs functions.

        Args:
            source: the text.
            values: names that it finds, and what they are.
            input: as of `run_function`.
            timeout: as of `run_function`.

        Returns:
            The verdict, with the value of the last line if that is an expression.

        Raises:
            Exception: as `run_function`.
        """
        if not isinstance(source, str):
            raise TypeError(f"source must be a string, not {source!r}")
        from ramet.sandbox._inside import run_source  # noqa: PLC0415 - not for programs

        args = source, "<sandbox>", dict(values or {})
        return self.run_function(run_source, args, input=input, timeout=timeout)

    def _zygote(self) -> InnerZygote:
        from ramet.sandbox._calls import InnerZygote  # noqa: PLC0415 - not for programs

        zygotes: dict[Any, InnerZygote] = self._zygotes  # type: ignore[attr-defined]
        key = os.geteuid(), os.getegid()
        found = zygotes.get(key)
        return zygotes.setdefault(key, InnerZygote(self)) if found is None else found

    def warm_up(self) -> None:
        """Start the interpreter for `call` now, and wait until it has imported `preload`.

        Raises:
            ZygoteError: an import fails or starts threads.
            Exception: as `call`.
        """
        self._zygote().warm_up()

    def close(self) -> None:
        """End the interpreter for `call`, and all calls. The next call starts another."""
        zygotes: dict[Any, InnerZygote] = self._zygotes  # type: ignore[attr-defined]
        with suppress(KeyError):
            while True:
                zygotes.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _more_fds(fds: Mapping[int, File] | None) -> dict[int, File]:
    """Check descriptors that are given beside the standard ones."""
    found = check_fds(fds or {})
    if any(number < 3 for number in found):
        raise ValueError("0, 1 and 2 are stdin, stdout and stderr, and not more descriptors")
    return found
