"""Landlock: rules for files that hold whatever the modes and mounts say, as a second line.

They are made of the entries of the root directory, so they say the same as its mounts do.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache

from ramet._native import Descriptor
from ramet._program import Program, Result

# linux/landlock.h; each ABI knows all that the ones before it do.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ACCESS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_SCOPES = 3  # LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, LANDLOCK_SCOPE_SIGNAL
_SCOPED_FROM = 6
_PATH_BENEATH = 1
_CREATE_RULESET_VERSION = 1
_WORD = 8  # bytes of a result

LOWEST_ABI = 2
"""Before it no file can be moved to another directory, which programs do not expect."""


@lru_cache(maxsize=1)
def abi() -> int:
    """Ask for the kernel's version of Landlock; 0 if it has none, or it is switched off.

    Source: landlock_create_ruleset(2).
    """
    # By a pipe: where SIGCHLD is ignored, older kernels do not tell an exit code.
    reader, writer = Descriptor.pipe()
    program = Program()
    version = program.syscall(
        "landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION, tolerate=range(1, 192)
    )
    program.syscall("write", writer.number, version.pointer, _WORD, expect=_WORD)
    program.exit(0)
    with suppress(ChildProcessError):
        program.start().wait()
    writer.close()
    return max(int.from_bytes(os.read(reader.number, _WORD), sys.byteorder, signed=True), 0)


def add_landlock(
    program: Program,
    scratch: int,
    *,
    writable: Mapping[str, bool],
    devices: Iterable[str],
    files: Iterable[Result],
) -> Result:
    """Add the steps that make rules. All else can be read and run.

    Args:
        program: where to add them.
        scratch: a descriptor that may be overwritten.
        writable: where all is allowed, and whether that is a file.
        devices: directories with devices, which can be written to as well.
        files: open files that are not in this root directory, and can be run.

    Returns:
        The rules, for landlock_restrict_self.

    Source: landlock_add_rule(2).
    """
    version = abi()
    handled = (1 << _ACCESS_BITS.get(version, _ACCESS_BITS[5])) - 1
    scopes = _SCOPES if version >= _SCOPED_FROM else 0
    attributes = struct.pack("=3Q", handled, 0, scopes)[: 24 if scopes else 8]
    rules = program.syscall("landlock_create_ruleset", attributes, len(attributes), 0)

    def allow(fd: Result, access: int) -> None:
        # The structure has the descriptor in it, so it must be a number that is known.
        program.dup2(fd, scratch)
        rule = struct.pack("=Qi", access & handled, scratch)
        program.syscall("landlock_add_rule", rules, _PATH_BENEATH, rule, 0)

    everything = handled & ~(_MAKE_CHAR | _MAKE_BLOCK)
    allowed = {"/": _READ}
    allowed |= dict.fromkeys(devices, _READ | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV)
    for path, is_file in writable.items():
        allowed[path] = everything & (_OF_FILES if is_file else -1)
    for path, access in allowed.items():
        fd = program.open(path, os.O_PATH | os.O_NOFOLLOW)
        allow(fd, access)
        program._close(fd)
    for file in files:
        allow(file, _EXECUTE | _READ_FILE)
    program.close(scratch)
    return rules
