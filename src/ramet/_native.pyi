from typing import Any, Final, Self, TypeVar, final

nothing: Final[int]

_Status = TypeVar("_Status", bound=Status)

def clone(
    fn: int, arg: int, flags: int, child_stack: int, ptid: int, newtls: int, ctid: int, /
) -> int: ...
def clone3(
    fn: int,
    arg: int,
    size: int,
    flags: int,
    pidfd: int,
    child_tid: int,
    parent_tid: int,
    exit_signal: int,
    stack: int,
    stack_size: int,
    tls: int,
    set_tid: int,
    set_tid_size: int,
    cgroup: int,
    /,
) -> int: ...
def address(buffer: object, /) -> int: ...

@final
class Stack:
    def __new__(cls, size: int, /) -> Stack: ...
    @property
    def size(self) -> int: ...
    @property
    def address(self) -> int: ...
    def released(self) -> bool: ...
    def release(self) -> None: ...
    def join(self, nanoseconds: int, /) -> bool: ...
    def value(self) -> int | None: ...

class Status:
    def __new__(cls, code: int, status: int, rusage: bytes | None = None, /) -> Self: ...
    @property
    def _code(self) -> int: ...
    @property
    def _status(self) -> int: ...
    @property
    def _rusage(self) -> bytes | None: ...

class Task:
    def __new__(cls) -> Self: ...
    def start(
        self,
        stack: Stack,
        fn: int,
        arg: int,
        flags: int,
        exit_signal: int,
        ptid: int,
        tls: int,
        ctid: int,
        cgroup: int,
        set_tid: bytes,
        use_clone: bool,
        /,
    ) -> int: ...
    def reap(self, options: int, status_type: type[_Status], /) -> _Status | None: ...
    _pid: int
    _pidfd: int
    _waitable: bool
    _status: Any
    _stack: Stack | None
    _keep: object
    _owner: int
    _flags: int
