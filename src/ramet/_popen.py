"""Popen, run and the like: subprocess, with the child started by a program.

The standard class does all that is not starting, waiting and signalling: pipes, communicate, text.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from subprocess import PIPE, CalledProcessError, CompletedProcess, TimeoutExpired
from types import MappingProxyType
from typing import Any, TypedDict, Unpack, cast

from ramet._child import Child, ExitStatus
from ramet._child_error import ChildError
from ramet._clone import HasFileno
from ramet._program import Program
from ramet._spawn import MOST_FDS, Descriptors, File, IdMap, Prepared, executables, prepare
from ramet._steps import Env, Path

_SHELL = "/bin/sh"


class _Options(TypedDict, total=False):
    """Those of ours; `start_timeout` is what `ramet.spawn` calls timeout."""

    flags: int
    uid_map: IdMap | None
    gid_map: IdMap | None
    rlimits: Mapping[int, int | tuple[int, int]] | None
    pdeathsig: int | None
    no_new_privs: bool
    cgroup: int | str | os.PathLike[str] | HasFileno | None
    nice: int | None
    affinity: Iterable[int] | None
    scheduler: tuple[int, int] | None
    ioprio: tuple[int, int] | None
    hostname: str | None
    before_exec: Callable[[Program], object] | None
    exit_signal: int | None
    set_tid: Sequence[int]
    start_timeout: float | None


class PopenOptions(_Options, total=False):
    """The keywords of `Popen`: ours, and those of subprocess.Popen."""

    bufsize: int
    executable: Path | None
    stdin: File | None
    stdout: File | None
    stderr: File | None
    preexec_fn: Callable[[], object] | None
    close_fds: bool
    shell: bool
    cwd: Path | None
    env: Env | None
    universal_newlines: bool | None
    startupinfo: None
    creationflags: int
    restore_signals: bool
    start_new_session: bool
    pass_fds: Iterable[int]
    user: int | str | None
    group: int | str | None
    extra_groups: Iterable[int | str] | None
    encoding: str | None
    errors: str | None
    text: bool | None
    umask: int
    pipesize: int
    process_group: int | None


# prepare's name of an option, and its default there.
_OURS = {
    name: ("timeout" if name == "start_timeout" else name) for name in _Options.__optional_keys__
}
_DEFAULTS = cast("dict[str, Any]", prepare.__kwdefaults__)


class Popen(subprocess.Popen[Any]):
    """A subprocess.Popen that is started as `ramet.spawn` does it.

    Takes all that the standard class takes, and means the same by it; with `preexec_fn` the
    standard way is gone. Beside that, as of `ramet.spawn`: `flags`, `uid_map`, `gid_map`,
    `rlimits`, `pdeathsig`, `no_new_privs`, `cgroup`, `nice`, `affinity`, `scheduler`, `ioprio`,
    `hostname`, `before_exec`, `exit_signal` and `set_tid`; and `start_timeout`, its `timeout`.

    The child is waited for, and signalled, by its pidfd. It is started without the GIL.

    Raises:
        ChildError: a step of the start failed; it is a FileNotFoundError, PermissionError and so on
            as well.
        ValueError: options that do not go together; `preexec_fn` with ramet's own.
        Otherwise as subprocess.Popen, and `ramet.spawn`.
    """

    _child: Child | None = None
    _options: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self, args: Path | Sequence[Path], *standard: Any, **options: Unpack[PopenOptions]
    ) -> None:
        plain = not standard and not options and type(args) in _SEQUENCES
        if plain and type(self) is Popen and not self._child_created:
            # In a hurry: all else is as the class has it.
            if subprocess._active:  # type: ignore[attr-defined]
                subprocess._cleanup()  # type: ignore[attr-defined]
            self.args = args
            argv: list[Path] = list(args)  # type: ignore[arg-type] # no string
            executable = argv[0]
            sys.audit("subprocess.Popen", executable, argv, None, None)
            self._start(_plain, argv, executable, None, None)
            return
        more: dict[str, Any] = dict(options)
        given = {_OURS[name]: more.pop(name) for name in _OURS.keys() & more.keys()}
        self._options = {
            name: value for name, value in given.items() if value is not _DEFAULTS[name]
        }
        super().__init__(args, *standard, **more)

    @property
    def pidfd(self) -> int:
        """The child's pidfd.

        Raises:
            ValueError: the child was waited for, or started with `preexec_fn`.
        """
        if self._child is None:
            raise ValueError(f"{self!r} has no pidfd")
        return self._child.pidfd

    @property
    def exit_status(self) -> ExitStatus | None:
        """How the child ended, when it was waited for; else None."""
        return None if self._child is None else self._child._status

    @property
    def rusage(self) -> resource.struct_rusage | None:
        """What the child used, when it was waited for; else None."""
        return None if self.exit_status is None else self.exit_status.rusage

    # --- what the standard class calls ------------------------------------------------------

    def _execute_child(
        self,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: bool,
        pass_fds: Iterable[int],
        cwd: Any,
        env: Any,
        startupinfo: Any,
        creationflags: Any,
        shell: bool,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        restore_signals: bool,
        gid: int | None,
        gids: Sequence[int] | None,
        uid: int | None,
        umask: int,
        start_new_session: bool,
        process_group: int,
    ) -> None:
        if preexec_fn is not None:
            if self._options:
                raise ValueError(
                    "preexec_fn runs Python in a fork: it can't be combined with ramet's options; "
                    "before_exec can"
                )
            super()._execute_child(  # type: ignore[misc] # typeshed does not know it
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo,
                creationflags, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite,
                restore_signals, gid, gids, uid, umask, start_new_session, process_group,
            )  # fmt: skip
            return
        if isinstance(args, os.PathLike) and shell:
            raise TypeError("path-like args is not allowed when shell is true")
        argv = _arguments(args)
        if shell:
            executable = executable or _SHELL
            argv = [executable, "-c", *argv]
        elif executable is None:
            executable = argv[0]
        sys.audit("subprocess.Popen", executable, argv, cwd, env)
        descriptors: Descriptors = ((0, p2cread), (1, c2pwrite), (2, errwrite))
        if pass_fds:
            passed = {int(fd): int(fd) for fd in pass_fds}
            if not all(0 <= fd < MOST_FDS for fd in passed):
                raise ValueError(f"bad value(s) in pass_fds: {sorted(passed)}")
            descriptors = tuple({**passed, **dict(descriptors)}.items())
        self._launch(
            argv,
            executable,
            env,
            descriptors,
            closes=close_fds,
            cwd=cwd,
            uid=uid,
            gid=gid,
            groups=None if gids is None else tuple(gids),
            umask=umask,
            start_new_session=bool(start_new_session),
            process_group=None if process_group == -1 else process_group,
            restore_signals=bool(restore_signals),
            **self._options,
        )
        if not p2cread == c2pwrite == errwrite == -1:
            self._close_pipe_fds(  # type: ignore[attr-defined]
                p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite
            )

    def _launch(
        self,
        args: list[Path],
        executable: Path,
        env: Env | None,
        descriptors: Descriptors,
        *,
        cwd: Any,
        **setup: Any,
    ) -> None:
        """Start what all options have been looked at for; the setup is that of `prepare`."""
        prepared = prepare(descriptors, cwd=cwd, **setup)
        self._start(prepared, args, executable, env, cwd)

    def _start(
        self, prepared: Prepared, args: list[Path], executable: Path, env: Env | None, cwd: Any
    ) -> None:
        paths = executables(executable, env)
        try:
            child = prepared.start(paths, args, env)
        except ChildError as error:
            # As given, like the standard class.
            if error.step > error.steps - len(paths):
                error.filename = executable
            elif cwd is not None and error.filename == os.fspath(cwd):
                error.filename = cwd
            raise
        self._adopt(child)

    def _adopt(self, child: Child) -> None:
        """Have a child that runs; it goes on when this is dropped."""
        child._quiet, child._kill = True, False  # we warn
        self._child = child
        self.pid = child._pid
        self._child_created = True

    def _internal_poll(self, _deadstate: int | None = None, *standard: Any) -> int | None:
        if self._child is None:
            return super()._internal_poll(_deadstate, *standard)  # type: ignore[misc,no-any-return]
        if self.returncode is None:
            try:
                status = self._child.poll()
            except (ChildProcessError, ValueError):
                # Nobody knows how it ended; or the garbage collector has dropped the two of us
                # together, and only we are back, in the list of the standard class.
                self.returncode = self._code_of(None) if _deadstate is None else _deadstate
            else:
                if status is not None:
                    self.returncode = self._code_of(status)
                    self._child._detach()
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self._child is None:
            return super()._wait(timeout)  # type: ignore[misc,no-any-return]
        if self.returncode is None:
            try:
                self.returncode = self._code_of(self._child.wait(timeout))
                self._child._detach()
            except TimeoutError:
                raise TimeoutExpired(self.args, timeout) from None  # type: ignore[arg-type]
            except ChildProcessError:
                self.returncode = self._code_of(None)
            except ValueError:
                if self.returncode is None:  # else another thread was quicker, and closed it
                    raise
        return self.returncode

    def _code_of(self, status: ExitStatus | None) -> int:
        return 0 if status is None else status.returncode  # as the standard class has it

    def __del__(self) -> None:
        # That asks whether the child has ended: here we know.
        if self._child_created and self.returncode is None:
            super().__del__()

    def send_signal(self, sig: int) -> None:
        """Send a signal to the child. Nothing happens if it has ended.

        Args:
            sig: its number.

        Source: pidfd_send_signal(2).
        """
        if self._child is None:
            super().send_signal(sig)
        elif self.poll() is None:
            self._child.send_signal(sig)


class _Blank(subprocess.Popen[Any]):
    def _execute_child(self, *args: Any) -> None:
        """Start nothing."""


# What the standard __init__ leaves in an object when all is left to its default becomes what the
# class has.
for _name, _value in vars(_Blank(())).items():
    setattr(Popen, _name, _value)
del _name, _value
_plain = prepare()
_SEQUENCES = (list, tuple)


def _arguments(args: Path | Sequence[Path]) -> list[Path]:
    return [args] if isinstance(args, str | bytes | os.PathLike) else list(args)


# --- functions, as subprocess has them ----------------------------------------------------------


def run(
    *popenargs: Any,
    input: str | bytes | None = None,  # noqa: A002 - subprocess's name
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **kwargs: Any,
) -> CompletedProcess[Any]:
    """Run a command and wait for it, as subprocess.run, by `Popen`.

    Args:
        popenargs: as of `Popen`.
        input: what it reads.
        capture_output: keep what it writes.
        timeout: seconds that it may take; then it is killed.
        check: a bad exit status is an error.
        kwargs: as of `Popen`.

    Raises:
        CalledProcessError: `check`, and it did not exit with 0.
        TimeoutExpired: it took too long.
        ValueError: options that do not go together.
        Otherwise as `Popen`.
    """
    if input is not None:
        if kwargs.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        kwargs["stdin"] = PIPE
    if capture_output:
        if kwargs.get("stdout") is not None or kwargs.get("stderr") is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        kwargs["stdout"] = kwargs["stderr"] = PIPE
    with Popen(*popenargs, **kwargs) as process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except TimeoutExpired:
            process.kill()
            process.wait()
            raise
        except BaseException:
            process.kill()  # __exit__ waits for it
            raise
        code = process.poll()
        assert code is not None  # noqa: S101 - communicate has waited
        if check and code:
            raise CalledProcessError(code, process.args, output=stdout, stderr=stderr)
    return CompletedProcess(process.args, code, stdout, stderr)


def call(*popenargs: Any, timeout: float | None = None, **kwargs: Any) -> int:
    """Run a command, and return its return code, as subprocess.call.

    Args:
        popenargs: as of `Popen`.
        timeout: seconds that it may take; then it is killed.
        kwargs: as of `Popen`.

    Raises:
        TimeoutExpired: it took too long.
        Otherwise as `Popen`.
    """
    with Popen(*popenargs, **kwargs) as process:
        try:
            return process.wait(timeout=timeout)
        except BaseException:
            process.kill()
            raise


def check_call(*popenargs: Any, **kwargs: Any) -> int:
    """Run a command that must exit with 0, as subprocess.check_call.

    Args:
        popenargs: as of `call`.
        kwargs: as of `call`.

    Raises:
        CalledProcessError: it did not exit with 0.
        Otherwise as `call`.
    """
    code = call(*popenargs, **kwargs)
    if code:
        command = kwargs["args"] if "args" in kwargs else popenargs[0]
        raise CalledProcessError(code, command)
    return 0


def check_output(*popenargs: Any, timeout: float | None = None, **kwargs: Any) -> Any:
    """Run a command that must exit with 0, and return what it wrote, as subprocess.check_output.

    Args:
        popenargs: as of `run`.
        timeout: seconds that it may take; then it is killed.
        kwargs: as of `run`, but for `stdout` and `check`.

    Raises:
        CalledProcessError: it did not exit with 0.
        ValueError: `stdout` or `check` was given.
        Otherwise as `run`.
    """
    for name in ("stdout", "check"):
        if name in kwargs:
            raise ValueError(f"{name} argument not allowed, it will be overridden.")
    if "input" in kwargs and kwargs["input"] is None:
        text = any(
            kwargs.get(name) for name in ("text", "universal_newlines", "encoding", "errors")
        )
        kwargs["input"] = "" if text else b""
    return run(*popenargs, stdout=PIPE, timeout=timeout, check=True, **kwargs).stdout
