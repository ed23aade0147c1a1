"""Stack traces and exceptions end at the trampoline."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from tests.native import toolchain

PROGRAMS = Path(__file__).parent / "programs"
DW_CFA_UNDEFINED = 7
INCLUDE = f"-I{toolchain.HEADERS}"


@pytest.fixture(scope="module")
def image(target: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ELFFile]:
    """Yield a linked trampoline: linking gives the unwind entries their addresses."""
    path = toolchain.link(target, tmp_path_factory.mktemp(target), 0x40_0000)
    with ELFFile.load_from_path(str(path)) as elf:
        yield elf


def extent(elf: ELFFile, name: str) -> tuple[int, int]:
    symbol = toolchain.symbol(elf, name)
    assert symbol["st_size"] > 0
    return symbol["st_value"], symbol["st_value"] + symbol["st_size"]


def entry_of(elf: ELFFile, address: int) -> FDE:
    """Return the unwind entry that covers `address`."""
    (found,) = (
        entry
        for entry in elf.get_dwarf_info().EH_CFI_entries()
        if isinstance(entry, FDE)
        and 0 <= address - entry["initial_location"] < entry["address_range"]
    )
    return found


@pytest.mark.parametrize("routine", toolchain.ROUTINES)
def test_one_entry_covers_all_of_the_parent(image: ELFFile, routine: str) -> None:
    start, end = extent(image, routine)
    entry = entry_of(image, start)
    assert entry["initial_location"] == start
    assert entry["initial_location"] + entry["address_range"] == end


def test_the_childs_return_address_is_undefined(image: ELFFile) -> None:
    start, end = extent(image, "ramet_child")
    entry = entry_of(image, start)
    assert entry["initial_location"] + entry["address_range"] == end
    # What clone3's child runs before it is the child's too.
    assert entry["initial_location"] == extent(image, "ramet_clone3")[1]
    first = entry.instructions[0]
    assert entry.cie
    assert first.opcode == DW_CFA_UNDEFINED
    assert first.args == [entry.cie["return_address_register"]]


@pytest.fixture(scope="module")
def unwinder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build unwind.c at fixed addresses, to find them in its symbol table."""
    target = toolchain.needs_native_trampoline()
    program = tmp_path_factory.mktemp("unwind") / "unwind"
    flags = ("-g", "-O1", "-no-pie", "-fno-omit-frame-pointer", "-Wall", "-Werror")
    sources = (PROGRAMS / "unwind.c", toolchain.source(target))
    toolchain.run(toolchain.compiler(target), *flags, INCLUDE, *sources, "-o", program)
    return program


@pytest.mark.parametrize("routine", toolchain.ROUTINES)
def test_backtrace_ends_at_the_trampoline(unwinder: Path, routine: str) -> None:
    ended, *addresses = toolchain.run(unwinder, routine).stdout.split()
    assert ended == "1"
    with ELFFile.load_from_path(str(unwinder)) as elf:
        frames = [extent(elf, name) for name in ("child_function", "ramet_child")]
    assert len(addresses) == len(frames)
    for address, (start, end) in zip(addresses, frames, strict=True):
        assert start <= int(address, 16) < end


@pytest.mark.parametrize("routine", toolchain.ROUTINES)
def test_debugger_stops_at_the_trampoline(unwinder: Path, routine: str) -> None:
    commands = (
        "set follow-fork-mode child",
        "break child_function",
        f"run {routine}",
        "backtrace",
        "kill",
    )
    arguments = [part for command in commands for part in ("-ex", command)]
    gdb = toolchain.require("gdb")
    done = toolchain.run(gdb, "-nx", "-batch", *arguments, unwinder, env={"DEBUGINFOD_URLS": ""})
    said = done.stdout + done.stderr
    if "Operation not permitted" in said:
        pytest.skip("needs ptrace")
    frames = re.findall(r"^#(\d+) .*?(\w+) \(", done.stdout, re.MULTILINE)
    assert frames == [("0", "child_function"), ("1", "ramet_child")], said
    assert "Backtrace stopped" not in said


@pytest.fixture(scope="module")
def thrower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = toolchain.needs_native_trampoline()
    directory = tmp_path_factory.mktemp("exceptions")
    program = directory / "exceptions"
    trampoline = toolchain.assemble(target, directory)
    flags = ("-O1", "-Wall", "-Wextra", "-Werror")
    source = PROGRAMS / "exceptions.cpp"
    toolchain.run(toolchain.require("g++"), *flags, INCLUDE, source, trampoline, "-o", program)
    return program


def test_exception_is_caught_in_the_function(thrower: Path) -> None:
    assert toolchain.run(thrower, "caught").stdout == "exit status 42\n"


def test_uncaught_exception_terminates(thrower: Path) -> None:
    done = toolchain.run(thrower, "uncaught")
    assert done.stdout == f"signal {signal.SIGABRT:d}\n"
    assert "terminate called" in done.stderr
