"""ramet.aio: asyncio's processes; CPython's own tests of them are in peers."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
from asyncio.subprocess import PIPE
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import ramet
from ramet import ExitStatus, aio

if importlib.util.find_spec("uvloop") is not None:
    # libuv opens a pipe for signals once, and keeps it: not to be taken for a leak of a test.
    importlib.import_module("uvloop").new_event_loop().close()

Main = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    """Run a coroutine on either event loop; nothing may be left of it."""
    if request.param == "uvloop":
        if importlib.util.find_spec("uvloop") is None:
            pytest.skip("uvloop is not installed")
        factory = importlib.import_module("uvloop").new_event_loop
    else:
        factory = asyncio.new_event_loop

    def runner(main: Main) -> None:
        async def guarded() -> None:
            before = descriptors()
            await main()
            gc.collect()
            await asyncio.sleep(0.02)
            assert descriptors() == before

        with asyncio.Runner(loop_factory=factory) as loop:
            loop.run(main())  # what the loop itself keeps is there by now
            loop.run(guarded())
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    return runner


def descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
    return found


def test_communicate(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        process = await aio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, nice=3)
        assert (await process.communicate(b"x" * 200_000))[0] == b"x" * 200_000
        assert process.returncode == 0

    run(main)


def test_streams(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        script = "read line; echo $line; echo err >&2; exit 5"
        process = await aio.create_subprocess_shell(script, PIPE, PIPE, PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"in\n")
        assert await process.stdout.readline() == b"in\n"
        assert await process.stderr.read() == b"err\n"
        assert await process.wait() == 5

    run(main)


def test_signals(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        for name, code in (("terminate", -15), ("kill", -9)):
            process = await aio.create_subprocess_exec("sleep", "60")
            getattr(process, name)()
            assert await process.wait() == code
            with pytest.raises(ProcessLookupError):
                getattr(process, name)()

    run(main)


def test_preexec_fn(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        process = await aio.create_subprocess_exec("true", preexec_fn=os.getpid)
        assert await process.wait() == 0

    run(main)


def test_errors(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError, match="no-such-program"):
            await aio.create_subprocess_exec("no-such-program", stdin=PIPE, stdout=PIPE)
        for options in ({"text": True}, {"shell": True}, {"encoding": "ascii"}, {"bufsize": 1}):
            with pytest.raises(ValueError, match=next(iter(options))):
                await aio.create_subprocess_exec("true", **options)
        with pytest.raises(ValueError, match="cmd must be a string"):
            await aio.create_subprocess_shell(["true"])  # type: ignore[arg-type]

    run(main)


@pytest.mark.parametrize("steps", range(8))
def test_cancelled(run: Callable[[Main], None], steps: int) -> None:
    """Whenever that comes, neither the process nor a descriptor stays."""

    async def main() -> None:
        task = asyncio.create_task(
            aio.create_subprocess_exec("sleep", "60", stdin=PIPE, stdout=PIPE)
        )
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        try:
            process = await task
        except asyncio.CancelledError:
            return
        process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]

    run(main)


def test_wait(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        with ramet.spawn(["sleep", "0.05"]) as child:
            cancelled = asyncio.create_task(aio.wait(child))
            waiting = [asyncio.create_task(aio.wait(child)) for _ in range(3)]
            await asyncio.sleep(0.01)
            cancelled.cancel()
            assert await asyncio.gather(*waiting) == [ExitStatus(os.CLD_EXITED, 0)] * 3
            assert (await aio.wait(child)).code == 0
            assert cancelled.cancelled()

    run(main)


def test_closed_by_another() -> None:
    async def main() -> None:
        child = ramet.spawn(["sleep", "60"])
        waiting = asyncio.create_task(aio.wait(child))
        await asyncio.sleep(0.01)
        child.kill()
        child.close()
        with pytest.raises(ValueError, match="closed before it was waited for"):
            await waiting

    asyncio.run(main())
    ramet.call(["true"])
