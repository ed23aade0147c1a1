"""The core without Python under AddressSanitizer, UBSan and valgrind."""

import os
from pathlib import Path

import pytest

from tests.native import toolchain

PROGRAM = Path(__file__).parent / "programs/launch.c"


def _build(directory: Path, *options: str) -> Path:
    """Build the program; what runs in the child is left as it is, see meson.build."""
    target = toolchain.needs_native_trampoline()
    compiler = toolchain.compiler(target)
    native = toolchain.NATIVE
    headers = [f"-I{path}" for path in (native, native / "arch" / target, toolchain.HEADERS)]
    child = directory / "child.o"
    toolchain.run(compiler, *toolchain.CHILD_ONLY, *headers, "-c", native / "child.c", "-o", child)
    program = directory / "launch"
    sources = [PROGRAM, native / "launch.c", native / "arch" / target / "clone.S", child]
    toolchain.run(compiler, "-g", "-O1", *options, *headers, *sources, "-o", program)
    return program


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizer(sanitizer: str, tmp_path: Path) -> None:
    program = _build(tmp_path, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    # The loader may map the program where ThreadSanitizer wants its shadow memory.
    prefix = ["setarch", os.uname().machine, "-R"] if sanitizer == "thread" else []
    env = {"ASAN_OPTIONS": "detect_stack_use_after_return=0"}
    assert toolchain.run(*prefix, program, env=env).stdout == "ok\n"


def test_valgrind(tmp_path: Path) -> None:
    valgrind = toolchain.require("valgrind")
    program = _build(tmp_path)
    done = toolchain.run(
        valgrind,
        "--quiet",
        "--error-exitcode=99",
        "--leak-check=full",
        "--child-silent-after-fork=no",
        program,
        "emulated",
    )
    assert done.stdout == "ok\n"
    assert done.stderr == ""
