from typing import Final, final

nothing: Final[int]

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
def waitid(idtype: int, id: int, options: int, /) -> tuple[int, int, int, bytes] | None: ...
def address(buffer: object, /) -> int: ...
@final
class Stack:
    def __new__(cls, size: int, /) -> Stack: ...
    @property
    def size(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def pidfd(self) -> int: ...
    def start(
        self,
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
    def released(self) -> bool: ...
    def release(self) -> None: ...
    def join(self, nanoseconds: int, /) -> bool: ...
    def value(self) -> int | None: ...
