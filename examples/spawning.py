"""Program files in new namespaces, in a cgroup from birth, with a step of one's own, and an error.

    python examples/spawning.py

Each part says so where this machine does not allow it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ramet
from ramet import ChildError, CloneFlags, Program


def in_namespaces() -> None:
    """Run a shell in new user, pid, mount and network namespaces, from an unprivileged parent."""
    print("A shell in new user, pid, mount and network namespaces:")

    def mount_proc(program: Program) -> None:
        program.mount(None, "/", None, 16384 | 1 << 18)  # MS_REC | MS_PRIVATE
        program.mount("proc", "/proc", "proc")

    script = 'echo "  user $(id -u), pid $$, $(ls -d /proc/[0-9]* | wc -l) processes"'
    try:
        status = ramet.spawn(
            ["sh", "-c", script],
            flags=CloneFlags.NEWPID | CloneFlags.NEWNS | CloneFlags.NEWNET,
            uid_map=0,
            gid_map=0,
            before_exec=mount_proc,
        ).wait()
    except OSError as error:
        print(f"  not here: {error}")
        return
    print(f"  {status}")


def in_a_cgroup() -> None:
    """Start a program in a cgroup, where it is from its first instruction on."""
    print("A program in a cgroup of its own:")
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounts = [line.split()[4] for line in lines if " - cgroup2 " in line]
    directory = Path(mounts[0] if mounts else "/sys/fs/cgroup") / f"ramet-example-{os.getpid()}"
    try:
        directory.mkdir()
    except OSError as error:
        print(f"  not here: {error}")
        return
    try:
        ramet.check_call(["sed", "s/^/  /", "/proc/self/cgroup"], cgroup=directory)
    finally:
        directory.rmdir()


def with_a_step_of_ones_own() -> None:
    """Make a system call in the child for which there is no option: any of the kernel's will do."""
    print("A program file with a step of one's own (it may not use more than one second of CPU):")
    program = Program()
    limits = (1).to_bytes(8, sys.byteorder) * 2
    program.syscall("prlimit64", 0, 0, limits, None)  # RLIMIT_CPU
    program.execve("/bin/sh", ["sh", "-c", "while :; do :; done"])
    print("\n".join(f"    {line}" for line in str(program).splitlines()))
    with program.start() as child:
        print(f"  {child.wait()}")


def an_error() -> None:
    """See what the error of a failing step looks like."""
    print("A step that fails:")
    try:
        ramet.spawn(["true"], cwd="/no/such/directory", umask=0o77, nice=5)
    except ChildError as error:  # a FileNotFoundError as well
        print(f"  {type(error).__name__}: {error}")
        print(f"  errno {error.errno}, file name {error.filename}, step {error.step}")


def main() -> None:
    """Show it all."""
    in_namespaces()
    in_a_cgroup()
    with_a_step_of_ones_own()
    an_error()


if __name__ == "__main__":
    main()
