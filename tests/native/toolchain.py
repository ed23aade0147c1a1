"""Compilers, emulators and ELF images for the tests of the native code."""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Symbol, SymbolTableSection

import ramet

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "src/native"
HEADERS = Path(ramet.get_include())
TARGETS = ("x86_64", "aarch64", "riscv64")
ROUTINES = ("ramet_clone", "ramet_clone3")

# As `hardening` and `child_only` in meson.build, less what a target doesn't know.
HARDENING: Mapping[str, Sequence[str]] = {
    "x86_64": ("-fcf-protection=full",),
    "aarch64": ("-mbranch-protection=standard",),
    "riscv64": (),
}
CHILD_ONLY = (
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-stack-protector",
    "-fno-builtin",
    "-fno-profile-generate",
    "-fno-sanitize=all",
    "-fno-tree-loop-distribute-patterns",
    "-U_FORTIFY_SOURCE",
)


def is_native(target: str) -> bool:
    return target == platform.machine()


def require(*programs: str) -> str:
    """Return the first of `programs` that is installed, or skip the test."""
    for program in programs:
        if path := shutil.which(program):
            return path
    pytest.skip(f"needs {' or '.join(programs)}")


def compiler(target: str) -> str:
    """Return the C compiler for `target`; only a foreign one may be missing."""
    if not is_native(target):
        return require(f"{target}-linux-gnu-gcc")
    path = shutil.which("gcc") or shutil.which("cc")
    assert path, "a C compiler is part of what the tests need"
    return path


def needs_native_trampoline() -> str:
    """Return this machine's architecture, or skip if there is no trampoline for it."""
    machine = platform.machine()
    if machine not in TARGETS:
        pytest.skip(f"no trampoline for {machine}")
    return machine


def run(
    *command: str | Path, status: int = 0, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, which must end with `status`."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **(env or {})},
    )
    said = f"{done.args}: {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.returncode == status, said
    return done


def source(target: str) -> Path:
    return NATIVE / "arch" / target / "clone.S"


def assemble(target: str, directory: Path, *flags: str) -> Path:
    """Assemble a trampoline to an object file in `directory`."""
    output = directory / f"{target}.o"
    run(compiler(target), *flags, "-Werror", "-c", source(target), "-o", output)
    return output


def link(target: str, directory: Path, address: int) -> Path:
    """Assemble a trampoline and link it, alone, to run at `address`."""
    output = directory / f"{target}.elf"
    place = ("-nostdlib", "-static", "-no-pie", f"-Wl,-Ttext={address:#x},-e,ramet_clone")
    run(compiler(target), *place, assemble(target, directory), "-o", output)
    return output


def symbols(elf: ELFFile, table: str = ".symtab") -> list[Symbol]:
    section = elf.get_section_by_name(table)
    assert isinstance(section, SymbolTableSection)
    return list(section.iter_symbols())


def symbol(elf: ELFFile, name: str) -> Symbol:
    (found,) = (each for each in symbols(elf) if each.name == name)
    return found


def require_static_library(target: str) -> None:
    """Skip the test if there is no static C library to link with."""
    name = "libc.a"
    if run(compiler(target), f"-print-file-name={name}").stdout.strip() == name:
        pytest.skip(f"needs {name} for {target}")
