"""Sandboxes: what a program may see, use and do, as data."""

from ramet.sandbox._root import (
    Bind,
    Devices,
    Directory,
    File,
    Overlay,
    Proc,
    Symlink,
    Tmpfs,
)
from ramet.sandbox._sandbox import Sandbox
from ramet.sandbox._verdict import CallError, Protection, ProtectionError, Verdict

__all__ = [
    "Bind",
    "CallError",
    "Devices",
    "Directory",
    "File",
    "Overlay",
    "Proc",
    "Protection",
    "ProtectionError",
    "Sandbox",
    "Symlink",
    "Tmpfs",
    "Verdict",
]

for _name in set(__all__) - {"Sandbox"}:  # that one is of the package
    globals()[_name].__module__ = __name__
del _name
