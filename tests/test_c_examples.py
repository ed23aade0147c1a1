"""The C example and the header, as a user of the installed package builds them."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.native import toolchain

EXAMPLE = toolchain.ROOT / "examples/c"
STRICT = "-O2 -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wno-sign-conversion -Werror"
EXPECTED = """\
clone: the sum is 77, the exit status 8
clone3: the sum is 10, the exit status 3
"""


def build_and_run(directory: Path, **variables: str) -> str:
    """Build the example in `directory` with make's `variables` and return what it prints."""
    toolchain.require("pkg-config")
    make = toolchain.require("make")
    for name in ("Makefile", "clone_sum.c"):
        shutil.copy(EXAMPLE / name, directory)
    variables = {"PYTHON": sys.executable, "CFLAGS": STRICT, **variables}
    settings = [f"{name}={value}" for name, value in variables.items()]
    toolchain.run(make, "-C", directory, *settings)
    return toolchain.run(directory / "clone_sum").stdout


def kernel_headers(directory: Path) -> Path:
    """Make a directory of the kernel's headers alone, for a C library that comes without."""
    including = directory / "including.c"
    including.write_text("#include <linux/sched.h>\n")
    rule = toolchain.run(compiler(), "-M", including).stdout
    found = directory / "headers"
    found.mkdir()
    for part in rule.replace("\\\n", " ").split():
        folder = Path(part).parent
        link = found / folder.name
        if folder.name in {"linux", "asm", "asm-generic"} and not link.exists():
            link.symlink_to(folder)
    return found


def compiler() -> str:
    return toolchain.compiler(toolchain.needs_native_trampoline())


def test_dynamic(tmp_path: Path) -> None:
    assert build_and_run(tmp_path, CC=compiler()) == EXPECTED


def test_static(tmp_path: Path) -> None:
    toolchain.require_static_library(toolchain.needs_native_trampoline())
    assert build_and_run(tmp_path, CC=compiler(), LDFLAGS="-static") == EXPECTED


@pytest.mark.parametrize("linking", ["", "-static"], ids=["dynamic", "static"])
def test_musl(tmp_path: Path, linking: str) -> None:
    musl = toolchain.require("musl-gcc")
    include = f"-isystem {kernel_headers(tmp_path)}"
    assert build_and_run(tmp_path, CC=musl, LDFLAGS=linking, CPPFLAGS=include) == EXPECTED


@pytest.mark.parametrize("standard", ["c99", "c11", "c17"])
def test_header_in_c(tmp_path: Path, standard: str) -> None:
    source = tmp_path / "including.c"
    source.write_text("#include <ramet.h>\n#include <ramet.h>\nint main(void) { return 0; }\n")
    flags = (f"-std={standard}", "-pedantic-errors", *STRICT.split(), f"-I{toolchain.HEADERS}")
    toolchain.run(compiler(), "-fsyntax-only", *flags, source)


@pytest.mark.parametrize("standard", ["c++11", "c++20"])
def test_header_in_cpp(tmp_path: Path, standard: str) -> None:
    source = tmp_path / "calling.cpp"
    # Links only if the names are C's.
    source.write_text(
        "#include <ramet.h>\n"
        "int main() { return ramet_clone(nullptr, nullptr, 0, nullptr, nullptr, nullptr, nullptr)"
        " + ramet_clone3(nullptr, 0, nullptr, nullptr) == -44 ? 0 : 1; }\n"
    )
    gpp = toolchain.require("g++")
    toolchain.needs_native_trampoline()
    flags = (f"-std={standard}", "-pedantic-errors", "-Wall", "-Wextra", "-Werror")
    places = (f"-I{toolchain.HEADERS}", f"-L{toolchain.HEADERS.parent / 'lib'}")
    program = tmp_path / "calling"
    toolchain.run(gpp, *flags, *places, source, "-lramet", "-o", program)
    toolchain.run(program)
