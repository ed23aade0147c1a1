"""asyncio: program files and children without blocking the event loop.

The processes are asyncio's own, with their streams, communicate and wait; what starts, watches and
signals them is `ramet.Popen`, by its pidfd. No child watcher is needed, and any event loop will do
that has ``add_reader`` and pipes, uvloop for one.
"""

from __future__ import annotations

import asyncio
import os
from asyncio import base_subprocess, streams
from asyncio.subprocess import Process, SubprocessStreamProtocol
from typing import Any

from ramet._child import Child, ExitStatus
from ramet._popen import Popen
from ramet._steps import Path

__all__ = ["create_subprocess_exec", "create_subprocess_shell", "wait"]

_DEFAULT_LIMIT: int = streams._DEFAULT_LIMIT  # type: ignore[attr-defined]


async def create_subprocess_exec(
    program: Path,
    *args: Path,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    limit: int = _DEFAULT_LIMIT,
    **options: Any,
) -> Process:
    """Run a program file, as asyncio.create_subprocess_exec.

    If this is cancelled the child is killed and waited for.

    Args:
        program: its name or path.
        args: its arguments.
        stdin: as of `ramet.Popen`; ``asyncio.subprocess.PIPE`` for a stream.
        stdout: the same.
        stderr: the same.
        limit: bytes that the streams buffer.
        options: as of `ramet.Popen`.

    Returns:
        The process, of asyncio's class.

    Raises:
        ValueError: an option for text or buffers, which streams do not have.
        Otherwise as `ramet.Popen`.
    """
    return await _create([program, *args], False, stdin, stdout, stderr, limit, options)


async def create_subprocess_shell(
    cmd: str | bytes,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    limit: int = _DEFAULT_LIMIT,
    **options: Any,
) -> Process:
    """Run a command line of the shell, as asyncio.create_subprocess_shell.

    If this is cancelled the child is killed and waited for.

    Args:
        cmd: the command line.
        stdin: as of `create_subprocess_exec`.
        stdout: the same.
        stderr: the same.
        limit: bytes that the streams buffer.
        options: as of `ramet.Popen`.

    Returns:
        The process, of asyncio's class.

    Raises:
        ValueError: `cmd` is no string; an option for text or buffers.
        Otherwise as `ramet.Popen`.
    """
    if not isinstance(cmd, str | bytes):
        raise ValueError("cmd must be a string")
    return await _create(cmd, True, stdin, stdout, stderr, limit, options)


async def wait(child: Child) -> ExitStatus:
    """Wait until a child has ended.

    Any number of tasks may wait for the same child. Cancelling one leaves the child alone.

    Args:
        child: of `ramet.clone`, `ramet.spawn` or `Program.start`.

    Returns:
        As `Child.wait`.

    Raises:
        ChildProcessError: as `Child.wait`.
        ValueError: the child was closed.
    """
    status = child.poll()
    if status is not None:
        return status
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    pidfd = os.dup(child.pidfd)  # a loop has one reader for a descriptor
    try:
        loop.add_reader(pidfd, _set, ended)
        try:
            await ended
        finally:
            loop.remove_reader(pidfd)
    finally:
        os.close(pidfd)
    return child.wait()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _create(
    args: Any,
    shell: bool,
    stdin: Any,
    stdout: Any,
    stderr: Any,
    limit: int,
    options: dict[str, Any],
) -> Process:
    for name in ("universal_newlines", "shell", "text"):
        if options.pop(name, False):
            raise ValueError(f"{name} must be False")
    for name in ("encoding", "errors"):
        if options.pop(name, None) is not None:
            raise ValueError(f"{name} must be None")
    if options.pop("bufsize", 0) != 0:
        raise ValueError("bufsize must be 0")
    loop = asyncio.get_running_loop()
    protocol = SubprocessStreamProtocol(limit=limit, loop=loop)
    connected = loop.create_future()
    transport = _Transport(
        loop, protocol, args, shell, stdin, stdout, stderr, 0, waiter=connected, **options
    )
    try:
        await connected
    except BaseException:
        transport.close()
        await transport._wait()
        raise
    return Process(transport, protocol, loop)


class _Transport(base_subprocess.BaseSubprocessTransport):
    """A process of asyncio that is a ramet.Popen."""

    _proc: Popen | None
    _loop: asyncio.AbstractEventLoop
    _pidfd = -1  # our own copy, which nobody else closes

    def _start(
        self,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        **options: Any,
    ) -> None:
        self._proc = Popen(
            args,
            shell=shell,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            bufsize=bufsize,
            universal_newlines=False,
            **options,
        )
        if self._proc._child is not None:
            self._pidfd = os.dup(self._proc.pidfd)
        else:  # with preexec_fn; it is there at least as a zombie
            self._pidfd = os.pidfd_open(self._proc.pid)
        self._loop.add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._close_pidfd()
        proc = self._proc
        if proc is not None and self._returncode is None:
            self._process_exited(proc.wait())

    def _close_pidfd(self) -> None:
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def send_signal(self, signal: int) -> None:
        self._check_proc()
        if self._proc is not None:
            self._proc.send_signal(signal)

    def __del__(self) -> None:
        super().__del__()
        self._close_pidfd()
