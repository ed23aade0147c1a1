"""A seccomp filter for one system call, put on this process for good."""

from __future__ import annotations

import ctypes

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW = 0x7FFF_0000
_ERRNO = 0x0005_0000
KILL_PROCESS = 0x8000_0000

CLONE3 = 435  # on every architecture


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


def refuse(number: int, error: int) -> None:
    """Have a system call fail with an errno from now on."""
    _install(number, _ERRNO | error)


def kill_on(number: int) -> None:
    """Have a system call end this process from now on."""
    _install(number, KILL_PROCESS)


def _install(number: int, action: int) -> None:
    # struct seccomp_data has the number first. Filters pile up; of two errors the newer is given.
    instructions = (_Instruction * 4)(
        _Instruction(_LOAD_WORD, 0, 0, 0),
        _Instruction(_JUMP_IF_EQUAL, 0, 1, number),
        _Instruction(_RETURN, 0, 0, action),
        _Instruction(_RETURN, 0, 0, _ALLOW),
    )
    program = _Program(len(instructions), instructions)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0)
    _prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(program))


def _prctl(option: int, argument: int, pointer: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(word) for word in (argument, pointer, 0, 0)]
    if libc.prctl(option, *words) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")
