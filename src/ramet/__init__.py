"""clone(2) and clone3(2) for Python.

Start a C function in a new process or thread, with exactly the sharing, namespaces, cgroup and
handles that you ask for. `clone` is the front door; `ramet.lowlevel` has the bare system calls.

All names are defined in private modules and exported here, and only here.
"""

from pathlib import Path

from ramet import lowlevel
from ramet._child import Child, ExitStatus
from ramet._clone import clone
from ramet._flags import CloneFlags, flag_rules
from ramet._probe import Support, probe
from ramet._stacks import DEFAULT_STACK_SIZE
from ramet._threads import Thread

__all__ = [
    "DEFAULT_STACK_SIZE",
    "Child",
    "CloneFlags",
    "ExitStatus",
    "Support",
    "Thread",
    "clone",
    "flag_rules",
    "get_include",
    "get_library_dir",
    "lowlevel",
    "probe",
]


def get_include() -> str:
    """Return the directory of ``ramet.h``, for a C compiler's ``-I``."""
    return str(Path(__file__).parent / "include")


def get_library_dir() -> str:
    """Return the directory of ``libramet.a``, for a C compiler's ``-L``.

    ``pkgconfig`` below it is for PKG_CONFIG_PATH.
    """
    return str(Path(__file__).parent / "lib")


for _public in (Child, CloneFlags, ExitStatus, Support, Thread, clone, flag_rules, probe):
    _public.__module__ = __name__
del _public
