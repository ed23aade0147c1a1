"""The trampolines, instruction by instruction, against what ramet.h promises.

One test body serves all architectures. The machine has nothing but the trampoline's code, the
caller's stack and clone_args, both read-only, and the child's stack: any other access is a fault.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import unicorn
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import arm64_const, riscv_const, unicorn_const, x86_const

from tests.native import toolchain

MASK = 2**64 - 1
PAGE = 4096
EINVAL = 22
ENGINE: Any = unicorn  # annotated in part
STEPS = 64

CODE = 0x40_0000
CALLER = 0x2_0000_0000
CALLER_SP = CALLER + PAGE  # between two pages
RETURN = 0x6_0000_0000
# Both have a zero low half, which a 32-bit comparison takes for NULL.
ARGS = 0x3_0000_0000
CHILD_MIDDLE = 0x5_0000_0000

CHILD_SIZE = 4 * PAGE
CHILD = CHILD_MIDDLE - CHILD_SIZE // 2
CHILD_END = CHILD + CHILD_SIZE
PATTERN = bytes(range(1, 256)) * (CHILD_SIZE // 255 + 1)


@dataclass(frozen=True)
class Architecture:
    """What differs from one architecture to the next."""

    engine: tuple[int, int]
    constants: object
    prefix: str
    registers: Sequence[str]
    parameters: Sequence[str]
    preserved: Sequence[str]
    outermost: Sequence[str]  # zero in the outermost frame: frame pointer first
    number: str
    arguments: Sequence[str]
    result: str
    sp: str
    pc: str
    link: str | None  # None: the return address is on the stack
    lost: Sequence[str]  # to the system call
    clone_order: Sequence[str]
    clone: int
    exit: int
    system_call: bytes
    ret: bytes
    trap: bytes
    flags: str | None = None
    direction_flag: int = 0

    @property
    def clobbered(self) -> Sequence[str]:
        """What a function need not preserve."""
        return [name for name in self.registers if name not in self.preserved]


ARCHITECTURES = {
    "x86_64": Architecture(
        engine=(unicorn_const.UC_ARCH_X86, unicorn_const.UC_MODE_64),
        constants=x86_const,
        prefix="UC_X86_REG_",
        registers=[
            "rax",
            "rbx",
            "rcx",
            "rdx",
            "rsi",
            "rdi",
            "rbp",
            "r8",
            "r9",
            "r10",
            "r11",
            "r12",
            "r13",
            "r14",
            "r15",
        ],
        parameters=["rdi", "rsi", "rdx", "rcx", "r8", "r9"],
        preserved=["rbx", "rbp", "r12", "r13", "r14", "r15"],
        outermost=["rbp"],
        number="rax",
        arguments=["rdi", "rsi", "rdx", "r10", "r8", "r9"],
        result="rax",
        sp="rsp",
        pc="rip",
        link=None,
        lost=["rcx", "r11"],
        clone_order=["flags", "stack", "ptid", "ctid", "tls"],
        clone=56,
        exit=60,
        system_call=b"\x0f\x05",
        ret=b"\xc3",
        trap=b"\x0f\x0b",
        flags="eflags",
        direction_flag=0x400,
    ),
    "aarch64": Architecture(
        engine=(unicorn_const.UC_ARCH_ARM64, unicorn_const.UC_MODE_ARM),
        constants=arm64_const,
        prefix="UC_ARM64_REG_",
        registers=[f"x{n}" for n in range(31)],
        parameters=[f"x{n}" for n in range(8)],
        preserved=[f"x{n}" for n in (18, *range(19, 30))],
        outermost=["x29", "x30"],
        number="x8",
        arguments=[f"x{n}" for n in range(6)],
        result="x0",
        sp="sp",
        pc="pc",
        link="x30",
        lost=[],
        clone_order=["flags", "stack", "ptid", "tls", "ctid"],
        clone=220,
        exit=93,
        system_call=struct.pack("<I", 0xD4000001),
        ret=struct.pack("<I", 0xD65F03C0),
        trap=struct.pack("<I", 0xD4200000),
    ),
    "riscv64": Architecture(
        engine=(unicorn_const.UC_ARCH_RISCV, unicorn_const.UC_MODE_RISCV64),
        constants=riscv_const,
        prefix="UC_RISCV_REG_",
        registers=["ra", "gp", "tp"]
        + [f"t{n}" for n in range(7)]
        + [f"s{n}" for n in range(12)]
        + [f"a{n}" for n in range(8)],
        parameters=[f"a{n}" for n in range(8)],
        preserved=["gp", "tp", *(f"s{n}" for n in range(12))],
        outermost=["s0", "ra"],
        number="a7",
        arguments=[f"a{n}" for n in range(6)],
        result="a0",
        sp="sp",
        pc="pc",
        link="ra",
        lost=[],
        clone_order=["flags", "stack", "ptid", "tls", "ctid"],
        clone=220,
        exit=93,
        system_call=struct.pack("<I", 0x00000073),
        ret=struct.pack("<H", 0x8082),
        trap=struct.pack("<H", 0x9002),
    ),
}


@dataclass(frozen=True)
class Trampoline:
    """A trampoline that is linked to run at CODE."""

    architecture: Architecture = field(repr=False)
    code: bytes = field(repr=False)
    entries: Mapping[str, int]


@pytest.fixture(scope="module")
def trampoline(target: str, tmp_path_factory: pytest.TempPathFactory) -> Trampoline:
    path = toolchain.link(target, tmp_path_factory.mktemp(target), CODE)
    with ELFFile.load_from_path(str(path)) as elf:
        section = elf.get_section_by_name(".text")
        assert section
        assert section["sh_addr"] == CODE
        entries = {name: toolchain.symbol(elf, name)["st_value"] for name in toolchain.ROUTINES}
        return Trampoline(ARCHITECTURES[target], section.data(), entries)


@dataclass(frozen=True)
class Request:
    """One call of either routine, by its parameters' names, and what it is to do."""

    routine: str
    fn: int
    arg: int
    flags: int = 0
    ptid: int = 0
    tls: int = 0
    ctid: int = 0
    child_stack: int = 0
    args: int = ARGS
    size: int = 0
    stack: int = 0
    stack_size: int = 0
    other: int = 0  # what is in the fields of clone_args that the kernel alone reads

    @property
    def parameters(self) -> Sequence[int]:
        if self.routine == "ramet_clone3":
            return (self.args, self.size, self.fn, self.arg)
        optional = (self.ptid, self.tls, self.ctid)
        return (self.fn, self.arg, self.flags, self.child_stack, *optional)

    @property
    def clone_args(self) -> bytes:
        before, after = [self.other] * 5, [self.other] * 4
        return struct.pack("<11Q", *before, self.stack, self.stack_size, *after)

    @property
    def top(self) -> int:
        is_clone3 = self.routine == "ramet_clone3"
        return self.stack + self.stack_size if is_clone3 else self.child_stack

    @property
    def words(self) -> int:
        """Where fn and arg are to be stored."""
        return self.top // 16 * 16 - 16

    def system_call(self, architecture: Architecture) -> tuple[int, Sequence[int]]:
        if self.routine == "ramet_clone3":
            return 435, (self.args, self.size)
        values = {
            "flags": self.flags,
            "stack": self.words,
            "ptid": self.ptid,
            "tls": self.tls,
            "ctid": self.ctid,
        }
        return architecture.clone, [values[name] for name in architecture.clone_order]

    @property
    def child_sp(self) -> int:
        """The stack pointer that the kernel gives to the child."""
        return self.top if self.routine == "ramet_clone3" else self.words

    @property
    def child_memory(self) -> bytes:
        at = self.words - CHILD
        words = struct.pack("<QQ", self.fn, self.arg)
        return PATTERN[:at] + words + PATTERN[at + 16 : CHILD_SIZE]


words = st.one_of(
    st.integers(0, MASK), st.sampled_from([0, 1, 2**31, 2**32, 2**63, MASK, 0xAAAA_AAAA_AAAA_AAAA])
)
# Canonical, aligned for every instruction set, and apart from what else there is.
functions = st.one_of(
    st.sampled_from([0x7_0000_0000, 0x7FFF_0000_0000]),
    st.integers(0x7_0000_0000, 2**47 - 2 * PAGE).map(lambda address: address // 4 * 4),
)


# One past a stack's highest byte.
tops = st.one_of(
    st.integers(CHILD + PAGE, CHILD_END),
    st.integers(CHILD_MIDDLE - 17, CHILD_MIDDLE + 17),
    st.sampled_from([CHILD_MIDDLE, CHILD_END]),
)


@st.composite
def stacks(draw: st.DrawFn) -> tuple[int, int]:
    """The lowest byte and the size of a stack for clone3, which need not all be there."""
    top = draw(tops)
    size = draw(
        st.one_of(
            st.integers(32, 96),
            st.integers(32, top - 1),
            st.sampled_from([32, 2**32, top - 2**32]),
        )
    )
    return top - size, size


@st.composite
def requests(draw: st.DrawFn, routine: str) -> Request:
    request = Request(routine, fn=draw(functions), arg=draw(words))
    if routine == "ramet_clone3":
        stack, stack_size = draw(stacks())
        return replace(
            request,
            size=draw(
                st.one_of(st.sampled_from([64, 80, 88, 2**32, 2**63]), st.integers(64, MASK))
            ),
            stack=stack,
            stack_size=stack_size,
            other=draw(words),
        )
    return replace(
        request,
        flags=draw(words),
        child_stack=draw(tops),
        ptid=draw(words),
        tls=draw(words),
        ctid=draw(words),
    )


@dataclass
class Machine:
    """A processor at the entry of a routine, called from CALLER_SP with RETURN to go back to."""

    trampoline: Trampoline
    request: Request
    junk: int
    entry_sp: int = field(init=False)
    trace: list[int] = field(init=False, default_factory=list)
    outermost: list[int] = field(init=False, default_factory=list)  # before the latest step

    def __post_init__(self) -> None:
        self.architecture = self.trampoline.architecture
        self.uc = ENGINE.Uc(*self.architecture.engine)
        self.uc.ctl_set_tlb_mode(unicorn_const.UC_TLB_VIRTUAL)  # all 64 bits of an address
        self.uc.mem_map(CODE, PAGE, unicorn_const.UC_PROT_READ | unicorn_const.UC_PROT_EXEC)
        self.uc.mem_write(CODE, self.trampoline.code)
        # Nothing is executed there, but the emulator looks ahead.
        for there in (RETURN, self.request.fn):
            if there:
                self.uc.mem_map(there // PAGE * PAGE, 2 * PAGE, unicorn_const.UC_PROT_EXEC)
        self.uc.mem_map(CALLER, 2 * PAGE, unicorn_const.UC_PROT_READ)
        self.uc.mem_map(ARGS, PAGE, unicorn_const.UC_PROT_READ)
        self.uc.mem_write(ARGS, self.request.clone_args)
        self.uc.mem_map(CHILD, CHILD_SIZE, unicorn_const.UC_PROT_READ | unicorn_const.UC_PROT_WRITE)
        self.uc.mem_write(CHILD, PATTERN[:CHILD_SIZE])
        self.scramble(self.architecture.registers)
        self._call()

    def _call(self) -> None:
        """Do what a C compiler does for the call."""
        architecture, parameters = self.architecture, self.request.parameters
        in_registers = len(architecture.parameters)
        for name, value in zip(architecture.parameters, parameters, strict=False):
            self[name] = value
        frame = list(parameters[in_registers:])
        if architecture.link:
            self[architecture.link] = RETURN
        else:
            frame.insert(0, RETURN)
        self.entry_sp = CALLER_SP if architecture.link else CALLER_SP - 8
        self.uc.mem_write(self.entry_sp, struct.pack(f"<{len(frame)}Q", *frame))
        self[architecture.sp] = self.entry_sp
        self[architecture.pc] = self.trampoline.entries[self.request.routine]

    def _constant(self, name: str) -> int:
        architecture = self.architecture
        constant: int = getattr(architecture.constants, architecture.prefix + name.upper())
        return constant

    def __getitem__(self, name: str) -> int:
        value: int = self.uc.reg_read(self._constant(name))
        return value

    def __setitem__(self, name: str, value: int) -> None:
        self.uc.reg_write(self._constant(name), value & MASK)

    def values(self, names: Sequence[str]) -> list[int]:
        return [self[name] for name in names]

    def scramble(self, names: Sequence[str]) -> None:
        for position, name in enumerate(names, start=1):
            self[name] = self.junk + position * 0x9E37_79B9_7F4A_7C15  # no two alike
        self.junk ^= 0x5555_5555_5555_5555

    @property
    def pc(self) -> int:
        return self[self.architecture.pc]

    @property
    def direction_flag(self) -> int:
        name = self.architecture.flags
        return self[name] & self.architecture.direction_flag if name else 0

    def set_direction_flag(self) -> None:
        if name := self.architecture.flags:
            self[name] |= self.architecture.direction_flag

    def is_at(self, code: bytes, address: int | None = None) -> bool:
        at = self.pc if address is None else address
        return CODE <= at < CODE + PAGE and bytes(self.uc.mem_read(at, len(code))) == code

    def advance(self, stop: int) -> None:
        """Go on to `stop` or, if it comes first, to a system call."""
        for _ in range(STEPS):
            if self.pc == stop or self.is_at(self.architecture.system_call):
                return
            self.trace.append(self.pc)
            self.outermost = self.values(self.architecture.outermost)
            self.uc.emu_start(self.pc, MASK, count=1)
        pytest.fail(f"still running after {STEPS} steps")

    def leave_kernel(self, result: int) -> None:
        self[self.architecture.pc] = self.pc + len(self.architecture.system_call)
        self[self.architecture.result] = result

    @property
    def system_call(self) -> tuple[int, list[int]]:
        assert self.is_at(self.architecture.system_call)
        return self[self.architecture.number], self.values(self.architecture.arguments)

    @property
    def child_memory(self) -> bytearray:
        memory: bytearray = self.uc.mem_read(CHILD, CHILD_SIZE)
        return memory

    def become_child(self) -> None:
        """Enter the child, for which nothing but its stack pointer is as it was."""
        architecture = self.architecture
        self.scramble(architecture.registers)
        self.leave_kernel(0)
        self[architecture.sp] = self.request.child_sp
        self.set_direction_flag()
        self.uc.mem_unmap(CALLER, 2 * PAGE)
        self.uc.mem_unmap(ARGS, PAGE)
        self.trace.clear()

    def return_from_fn(self, value: int) -> None:
        """Return as a function may: with only the preserved registers as they were."""
        architecture = self.architecture
        if architecture.link:
            back = self[architecture.link]
        else:
            (back,) = struct.unpack("<Q", self.uc.mem_read(self[architecture.sp], 8))
            self[architecture.sp] += 8
        self.scramble(architecture.clobbered)
        self[architecture.result] = value
        self[architecture.pc] = back

    def assert_returned(self, result: int, preserved: Sequence[int]) -> None:
        architecture = self.architecture
        assert self.pc == RETURN
        assert self[architecture.result] == result & MASK
        assert self.values(architecture.preserved) == preserved
        assert self[architecture.sp] == self.entry_sp + (0 if architecture.link else 8)
        assert self.direction_flag == 0


each_routine = pytest.mark.parametrize("routine", toolchain.ROUTINES)
examples = settings(max_examples=60, deadline=None)


@each_routine
@examples
@given(data=st.data(), junk=words, result=st.integers(-4095, 2**31 - 1).filter(bool))
def test_parent(
    trampoline: Trampoline, routine: str, data: st.DataObject, junk: int, result: int
) -> None:
    request = data.draw(requests(routine))
    machine = Machine(trampoline, request, junk)
    preserved = machine.values(trampoline.architecture.preserved)

    machine.advance(RETURN)

    number, arguments = machine.system_call
    expected_number, expected = request.system_call(trampoline.architecture)
    assert number == expected_number
    assert arguments[: len(expected)] == list(expected)
    assert machine.child_memory == request.child_memory

    machine.leave_kernel(result)
    machine.scramble(trampoline.architecture.lost)
    machine.advance(RETURN)

    machine.assert_returned(result, preserved)
    assert machine.child_memory == request.child_memory


@each_routine
@examples
@given(data=st.data(), junk=words, value=words)
def test_child(
    trampoline: Trampoline, routine: str, data: st.DataObject, junk: int, value: int
) -> None:
    architecture = trampoline.architecture
    request = data.draw(requests(routine))
    machine = Machine(trampoline, request, junk)
    machine.advance(RETURN)
    machine.become_child()

    machine.advance(request.fn)

    assert machine.pc == request.fn
    assert machine[architecture.parameters[0]] == request.arg
    pushed = 0 if architecture.link else 8
    assert (machine[architecture.sp] + pushed) % 16 == 0
    assert CHILD <= machine[architecture.sp] <= request.words
    assert machine[architecture.outermost[0]] == 0
    assert machine.outermost == [0] * len(machine.outermost)
    assert machine.direction_flag == 0

    machine.return_from_fn(value)
    machine.advance(RETURN)

    number, arguments = machine.system_call
    assert number == architecture.exit
    assert arguments[0] == value
    assert machine.is_at(architecture.trap, machine.pc + len(architecture.system_call))
    # A shadow stack that is shared with the parent allows for calls alone.
    assert not any(machine.is_at(architecture.ret, address) for address in machine.trace)


@pytest.mark.parametrize(
    "invalid",
    [
        ("ramet_clone", "fn", st.just(0)),
        ("ramet_clone", "child_stack", st.just(0)),
        ("ramet_clone3", "fn", st.just(0)),
        ("ramet_clone3", "args", st.just(0)),
        ("ramet_clone3", "stack", st.just(0)),
        ("ramet_clone3", "size", st.just(63) | st.integers(0, 63)),
        ("ramet_clone3", "stack_size", st.just(31) | st.integers(0, 31)),
    ],
    ids=lambda invalid: "-".join(invalid[:2]),
)
@settings(max_examples=30, deadline=None)
@given(data=st.data(), junk=words)
def test_invalid_is_refused_without_a_system_call(
    trampoline: Trampoline,
    invalid: tuple[str, str, st.SearchStrategy[int]],
    data: st.DataObject,
    junk: int,
) -> None:
    routine, parameter, values = invalid
    change: dict[str, Any] = {parameter: data.draw(values)}
    request = replace(data.draw(requests(routine)), **change)
    machine = Machine(trampoline, request, junk)
    preserved = machine.values(trampoline.architecture.preserved)

    machine.advance(RETURN)

    machine.assert_returned(-EINVAL, preserved)
    assert machine.child_memory == PATTERN[:CHILD_SIZE]
