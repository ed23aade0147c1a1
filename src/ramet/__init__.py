"""clone(2) and clone3(2) for Python.

Start a C function in a new process or thread, with exactly the sharing, namespaces, cgroup and
handles that you ask for. `clone` is the front door; `ramet.lowlevel` has the bare system calls.

All names are defined in private modules and exported here, and only here.
"""

from pathlib import Path

from ramet import lowlevel
from ramet._child import Child, ExitStatus
from ramet._child_error import ChildError
from ramet._clone import clone
from ramet._flags import CloneFlags, flag_rules
from ramet._popen import Popen, call, check_call, check_output, run
from ramet._probe import Support, probe
from ramet._program import Program, Result
from ramet._spawn import spawn
from ramet._stacks import DEFAULT_STACK_SIZE
from ramet._threads import Thread

__all__ = [
    "DEFAULT_STACK_SIZE",
    "Child",
    "ChildError",
    "CloneFlags",
    "ExitStatus",
    "Popen",
    "Program",
    "Result",
    "Support",
    "Thread",
    "call",
    "check_call",
    "check_output",
    "clone",
    "flag_rules",
    "get_include",
    "get_library_dir",
    "lowlevel",
    "probe",
    "run",
    "spawn",
]


def get_include() -> str:
    """Return the directory of ``ramet.h``, for a C compiler's ``-I``."""
    return str(Path(__file__).parent / "include")


def get_library_dir() -> str:
    """Return the directory of ``libramet.a``, for a C compiler's ``-L``.

    ``pkgconfig`` below it is for PKG_CONFIG_PATH.
    """
    return str(Path(__file__).parent / "lib")


for _name in __all__:
    if hasattr(_public := globals()[_name], "__qualname__"):
        _public.__module__ = __name__
del _name, _public
