"""A C program for each architecture: this machine's as it is, the others' under emulation."""

import errno
from pathlib import Path

from tests.native import toolchain

PROGRAM = Path(__file__).parent / "programs/emulated.c"


def test_program(target: str, tmp_path: Path) -> None:
    program = tmp_path / target
    command = [toolchain.compiler(target), "-static", "-O2", "-Wall", "-Wextra", "-Werror"]
    sources = [PROGRAM, toolchain.source(target)]
    include = f"-I{toolchain.HEADERS}"
    toolchain.require_static_library(target)
    toolchain.run(*command, include, *sources, "-o", program)

    native = toolchain.is_native(target)
    emulator = () if native else (toolchain.require(f"qemu-{target}-static", f"qemu-{target}"),)
    output = dict(
        line.split(": ") for line in toolchain.run(*emulator, program).stdout.splitlines()
    )

    clone3 = output.pop("clone3")
    assert output == {
        **{f"clone {misaligned}": "exit status 42" for misaligned in range(16)},
        "no function": f"error {errno.EINVAL}",
        "no stack": f"error {errno.EINVAL}",
        "bad flags": f"error {errno.EINVAL}",
        "errno": "4242",
    }
    # Emulators know clone3 or say that they don't.
    assert clone3 == "exit status 43" or (not native and clone3 == f"error {errno.ENOSYS}")
