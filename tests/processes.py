"""What processes of a multiprocessing context do, in a module that is quick to import."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import sys
import time
from multiprocessing import resource_tracker
from multiprocessing.process import current_process, parent_process
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, NoReturn

import ramet.mp
from tests import functions

context = ramet.mp.get_context(["tests.processes"])


class Doubler(context.Process):  # type: ignore[name-defined,misc]
    """As users have them."""

    def __init__(self, number: int, answers: Any) -> None:
        super().__init__(name="doubler", daemon=True)
        self.number = number
        self.answers = answers

    def run(self) -> None:
        self.answers.put((self.name, self.daemon, type(self).__name__, 2 * self.number))


def square(x: int) -> int:
    return x * x


def pid_of(_: object) -> int:
    time.sleep(0.001)
    return os.getpid()


def put(queue: Any, value: object) -> None:
    queue.put(value)


def about(queue: Any) -> None:
    parent = parent_process()
    assert parent is not None
    queue.put(
        {
            **functions.state(),
            "ids": (os.getpid(), os.getppid()),
            "parent": (parent.pid, parent.name, parent.is_alive()),
            "authkey": bytes(current_process().authkey),
            "name": current_process().name,
            "method": multiprocessing.get_start_method(),
            "children": multiprocessing.active_children(),
            "stdin": sys.stdin.read(),
            "argv": sys.argv,
            "path": sys.path,
            "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "ignores": signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN,
            "flags": tuple(sys.flags),
            "tracker": os.fstat(resource_tracker.getfd() or 0).st_ino,
            "main": sys.modules["__main__"].__name__,
        }
    )


def end(how: str) -> NoReturn:
    if how == "exception":
        raise LookupError("a reason")
    if how == "text":
        sys.exit("a text")
    if how == "leave":
        os._exit(4)
    if how == "abort":
        os.abort()
    sys.exit(int(how))


def write_at_exit(path: Path) -> None:
    atexit.register(path.write_text, "here")


def meet(things: dict[str, Any]) -> None:
    """Use one of everything; the parent does its part."""
    with things["lock"], things["rlock"], things["rlock"]:
        things["value"].value += 1
        things["array"][1] = 2.5
    things["semaphore"].release()
    things["event"].wait(20)
    with things["condition"]:
        things["condition"].notify()
    things["joinable"].get()
    things["joinable"].task_done()
    things["queue"].put("queued")
    things["pipe"].send(things["pipe"].recv() * 2)
    things["barrier"].wait(20)


def start_another(owner: Any, queue: Any) -> None:
    """A child of a child, from a context that came along, and from a standard one."""
    for context in (owner, pickle.loads(pickle.dumps(owner)), owner.get_context("spawn")):  # noqa: S301
        process = context.Process(target=put, args=(queue, os.getpid()))
        process.start()
        process.join()
        queue.put((process.exitcode, context is owner))


def start_by_default(queue: Any) -> None:
    """The same, where the parent's default is a context of ours."""
    queue.put(multiprocessing.get_start_method())
    process = multiprocessing.Process(target=put, args=(queue, "a grandchild"))
    process.start()
    process.join()


def send_state(pipe: Any) -> None:
    pipe.send((os.uname().nodename, functions.state()["ids"]))


def fill(name: str) -> None:
    memory = SharedMemory(name)
    assert memory.buf is not None
    memory.buf[3] = 7
    memory.close()


def make_shared_memory(queue: Any) -> None:
    memory = SharedMemory(create=True, size=100)
    assert memory.buf is not None
    memory.buf[0] = 42
    memory.close()
    queue.put(memory.name)


def wait_for_parent(queue: Any) -> None:
    parent = parent_process()
    assert parent is not None
    queue.put(os.getpid())
    parent.join(20)
    os._exit(5)


def interrupted(queue: Any) -> None:
    queue.put("ready")
    try:
        time.sleep(20)
    except KeyboardInterrupt:
        sys.exit(7)


_started: list[int] = []


def initialize(number: int) -> None:
    _started.append(number)


def initialized(_: object) -> list[int]:
    return _started


def kill_me(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
