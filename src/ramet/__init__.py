"""clone(2) and clone3(2) for Python.

Start a C function, or a program file with any setup, in a new process or thread, with exactly the
sharing, namespaces, cgroup and handles that you ask for. `clone` starts C functions, `spawn` and
`Popen` start program files, and a `Program` is what a child does before it execs; a `Zygote` runs
Python functions in fresh children, and `fork` copies this process. `ramet.lowlevel` has the bare
system calls.

All names are defined in private modules and exported here, and only here.
"""

import os as _os
import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING

from ramet import lowlevel
from ramet._child import Child, ExitStatus
from ramet._clone import clone
from ramet._flags import CloneFlags, flag_rules
from ramet._stacks import DEFAULT_STACK_SIZE
from ramet._threads import Thread

if _TYPE_CHECKING:
    from ramet._child_error import ChildError
    from ramet._fork import fork
    from ramet._isolated import isolated
    from ramet._popen import Popen, call, check_call, check_output, run
    from ramet._probe import Support, probe
    from ramet._program import Program, Result
    from ramet._spawn import spawn
    from ramet._zygote import BoundZygote, ChildDiedError, FunctionChild, Zygote, ZygoteError
    from ramet.sandbox import Sandbox

__all__ = [
    "DEFAULT_STACK_SIZE",
    "BoundZygote",
    "Child",
    "ChildDiedError",
    "ChildError",
    "CloneFlags",
    "ExitStatus",
    "FunctionChild",
    "Popen",
    "Program",
    "Result",
    "Sandbox",
    "Support",
    "Thread",
    "Zygote",
    "ZygoteError",
    "call",
    "check_call",
    "check_output",
    "clone",
    "flag_rules",
    "fork",
    "get_include",
    "get_library_dir",
    "isolated",
    "lowlevel",
    "probe",
    "run",
    "spawn",
]

# What is imported when it is first asked for: it takes longer than all else here.
_LAZY = {
    name: module
    for module, names in {
        "_child_error": ("ChildError",),
        "_fork": ("fork",),
        "_isolated": ("isolated",),
        "_popen": ("Popen", "call", "check_call", "check_output", "run"),
        "_probe": ("Support", "probe"),
        "_program": ("Program", "Result"),
        "_spawn": ("spawn",),
        "sandbox": ("Sandbox",),
        "_zygote": ("BoundZygote", "ChildDiedError", "FunctionChild", "Zygote", "ZygoteError"),
    }.items()
    for name in names
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    import_module(f"{__name__}.{_LAZY[name]}")
    for other, module in _LAZY.items():  # those that this has imported, too
        if f"{__name__}.{module}" in _sys.modules and other not in globals():
            thing = getattr(_sys.modules[f"{__name__}.{module}"], other, None)
            if thing is not None:  # else another thread is importing it
                thing.__module__ = __name__
                globals()[other] = thing
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def get_include() -> str:
    """Return the directory of ``ramet.h``, for a C compiler's ``-I``."""
    return _os.path.join(_os.path.dirname(__file__), "include")


def get_library_dir() -> str:
    """Return the directory of ``libramet.a``, for a C compiler's ``-L``.

    ``pkgconfig`` below it is for PKG_CONFIG_PATH.
    """
    return _os.path.join(_os.path.dirname(__file__), "lib")


for _name in set(__all__).difference(_LAZY):
    if hasattr(_public := globals()[_name], "__qualname__"):
        _public.__module__ = __name__
del _name, _public
