"""What programs of this system, and this Python, need to see of the file system."""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Iterable, Mapping

from ramet.sandbox._root import Bind, Devices, Entry, File, Proc, Symlink, Tmpfs

_LIBRARIES = ("lib", "lib32", "lib64", "libx32")
_PROGRAMS = ("bin", "sbin")
# Names, time, and what TLS needs; nothing that tells of this machine's users or secrets.
_CONFIGURATION = (
    *("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/mime.types"),
    *("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/pki/tls/certs", "/etc/ca-certificates"),
)
_SHARED = {"/usr", "/usr/local"}
_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services")


def basic_files(uid: int, gid: int, hostname: str) -> dict[str, Entry]:
    """What every preset has: /proc, a minimal /dev, a /tmp, names for the ids, and settings."""
    return _if_there(_CONFIGURATION) | {
        "/proc": Proc(),
        "/dev": Devices(),
        "/tmp": Tmpfs(mode=0o1777),  # noqa: S108 - that of the sandbox
        "/etc/passwd": File(
            f"root:x:0:0::/:/bin/false\nuser:x:{uid}:{gid}::/tmp:/bin/sh\n".encode()
            if uid
            else b"root:x:0:0::/tmp:/bin/sh\n"
        ),
        "/etc/group": File((f"root:x:0:\nuser:x:{gid}:\n" if gid else "root:x:0:\n").encode()),
        "/etc/hosts": File(f"127.0.0.1 localhost {hostname}\n::1 localhost\n".encode()),
    }


def system_files() -> dict[str, Entry]:
    """Programs and libraries of the system, read-only."""
    found: dict[str, Entry] = {"/usr": Bind("/usr")}
    return found | _as_here(f"/{name}" for name in (*_PROGRAMS, *_LIBRARIES))


def network_files() -> dict[str, Entry]:
    """What finds hosts by their names."""
    return _if_there(_NETWORK)


def python_files() -> dict[str, Entry]:
    """Give the running interpreter, its packages, and the libraries of the system; read-only."""
    found = _as_here(f"{top}/{name}" for top in ("", "/usr", "/usr/local") for name in _LIBRARIES)
    places = {sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix}
    places |= {*site.getsitepackages(), os.path.dirname(os.path.dirname(__file__))}
    if site.ENABLE_USER_SITE:
        places.add(site.getusersitepackages())
    if places & _SHARED:  # there is more in them than Python
        places -= _SHARED
        found |= {path: Bind(path) for path in _executables()}
    for place in sorted(map(os.path.abspath, places)):
        if os.path.exists(place) and not _is_in(place, found):
            found[place] = Bind(place)
    return found


def _executables() -> set[str]:
    """The interpreter, by the name that it was called by and by its own."""
    return {os.path.abspath(sys.executable), os.path.realpath(sys.executable)}


def _if_there(paths: Iterable[str]) -> dict[str, Entry]:
    return {path: Bind(path, missing_ok=True) for path in paths}


def _as_here(paths: Iterable[str]) -> dict[str, Entry]:
    """Directories of the system: links where they are links here."""
    found: dict[str, Entry] = {}
    for path in paths:
        if os.path.islink(path):
            found[path] = Symlink(os.readlink(path))
        elif os.path.isdir(path):
            found[path] = Bind(path)
    return found


def _is_in(path: str, entries: Mapping[str, Entry]) -> bool:
    return any(
        isinstance(entry, Bind) and os.path.commonpath([path, other]) == other
        for other, entry in entries.items()
    )
