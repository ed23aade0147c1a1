"""The root directory of a sandbox: what is in it, and the steps that make it.

All is built in the child, in mount, pid and user namespaces of its own, with the mounts' own calls
(open_tree, fsopen, move_mount). Sources are opened before anything is covered, and attributes are
set before a mount can be reached. Nothing is ever created in a directory of ours, and no symbolic
link of the new tree is followed: so a hostile one there cannot lead a mount elsewhere.
"""

from __future__ import annotations

import errno
import os
import posixpath
import struct
from collections.abc import Mapping
from typing import NamedTuple

from ramet import _names
from ramet._program import Program, Result

_AT = _names.AT
_ATTRIBUTES = _names.MOUNT_ATTR
_RDONLY, _NOEXEC = _ATTRIBUTES["MOUNT_ATTR_RDONLY"], _ATTRIBUTES["MOUNT_ATTR_NOEXEC"]
_PRIVILEGE = _ATTRIBUTES["MOUNT_ATTR_NOSUID"] | _ATTRIBUTES["MOUNT_ATTR_NODEV"]
_EMPTY, _EVERYWHERE = _AT["AT_EMPTY_PATH"], _AT["AT_EMPTY_PATH"] | _AT["AT_RECURSIVE"]
_CLONE = _names.OPEN_TREE["OPEN_TREE_CLONE"] | os.O_CLOEXEC
_SET_STRING, _CREATE = (
    _names.FSCONFIG["FSCONFIG_SET_STRING"],
    _names.FSCONFIG["FSCONFIG_CMD_CREATE"],
)
_FROM_FD = _names.MOVE_MOUNT["MOVE_MOUNT_F_EMPTY_PATH"]
_FD_TO_FD = _FROM_FD | _names.MOVE_MOUNT["MOVE_MOUNT_T_EMPTY_PATH"]
_SLAVE = _names.MS["MS_REC"] | _names.MS["MS_SLAVE"]
_UMASK = 0o022
_DETACH = _names.UMOUNT["MNT_DETACH"]
# struct open_how (linux/openat2.h): O_PATH, and RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS.
_HOW = struct.pack("=3Q", os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, 0, 0x08 | 0x04)

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS_OF_DEVICES = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}


class Bind(NamedTuple):
    """A file or directory of ours, with all that is mounted in it.

    Attributes:
        source: the path here.
        writable: it may be written to, as far as its modes allow.
        is_file: it is no directory.
    """

    source: str
    writable: bool = False
    is_file: bool = False


class Tmpfs(NamedTuple):
    """An empty directory in memory.

    Attributes:
        size: bytes that it may hold.
        inodes: files that it may hold.
        mode: its permissions.
    """

    size: int
    inodes: int = 10_000
    mode: int = 0o755


class Directory(NamedTuple):
    """An empty directory, which cannot be written to unless it is in a tmpfs.

    Attributes:
        mode: its permissions.
    """

    mode: int = 0o755


class Symlink(NamedTuple):
    """A symbolic link.

    Attributes:
        target: where it leads.
    """

    target: str


class File(NamedTuple):
    """A file made of bytes.

    Attributes:
        data: what it holds.
        mode: its permissions.
    """

    data: bytes
    mode: int = 0o444


class Proc(NamedTuple):
    """The processes of the sandbox."""


class Devices(NamedTuple):
    """A minimal /dev: null, zero, full, random, urandom, tty, terminals and shared memory.

    Attributes:
        shm: bytes that its /dev/shm may hold.
    """

    shm: int = 64 << 20


Entry = Bind | Tmpfs | Directory | Symlink | File | Proc | Devices


def normalize(path: str | os.PathLike[str]) -> str:
    """Check a path in the sandbox.

    Returns:
        It, without "." and doubled slashes, and without the slash at its beginning.

    Raises:
        ValueError: it does not begin with a slash, has ".." in it, or is the root itself.
    """
    text = os.fspath(path)
    if not text.startswith("/"):
        raise ValueError(f"a path in the sandbox begins with a slash: {text!r}")
    if ".." in text.split("/"):
        raise ValueError(f"a path in the sandbox has no '..' in it: {text!r}")
    if "\0" in text:
        raise ValueError(f"a path has no NUL in it: {text!r}")
    normal = posixpath.normpath(text).lstrip("/")
    if not normal:
        raise ValueError("the root directory itself is always a new one")
    return normal


def check(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Check the entries of a root directory, and put them in the order in which they are made.

    Args:
        entries: what is there, by paths in the sandbox.

    Returns:
        They, by normalized paths, each behind the directories that it is in.

    Raises:
        ValueError: a path is bad, comes twice, or lies in what is no directory.
    """
    found: dict[str, Entry] = {}
    for path, entry in entries.items():
        normal = normalize(path)
        if normal in found:
            raise ValueError(f"there is more than one entry for {path!r}")
        found[normal] = entry
    for normal in found:
        for parent in _parents(normal):
            entry = found.get(parent, Directory())
            if isinstance(entry, Symlink | File) or (isinstance(entry, Bind) and entry.is_file):
                raise ValueError(f"/{normal} lies in /{parent}, which is no directory")
            if isinstance(entry, Proc):
                raise ValueError(f"/{normal} lies in /{parent}, where nothing can be made")
    return dict(sorted(found.items(), key=lambda item: item[0].split("/")))


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def add_root(program: Program, entries: Mapping[str, Entry], size: int = 1 << 20) -> None:
    """Add the steps that make a root directory, and move to it.

    The child needs CAP_SYS_ADMIN in mount and pid namespaces of its own. Its working directory is
    the root directory then, its umask 022.

    Args:
        program: where to add them.
        entries: as `check` returns them.
        size: bytes that the files and directories of the root itself may take.
    """
    program.umask(0)  # the modes are those that were asked for
    # What is mounted here does not go to our namespace; what is mounted there would come.
    program.mount(None, "/", None, _SLAVE)
    sources = {
        path: _open(program, entry) for path, entry in entries.items() if isinstance(entry, Bind)
    }
    devices = {}
    if any(isinstance(entry, Devices) for entry in entries.values()):
        devices = {name: _open(program, Bind(f"/dev/{name}", True, True)) for name in _DEVICES}
    root = _tmpfs(program, Tmpfs(size))
    # The root of the old tree is still what paths begin at, and can be used all the time.
    program.move_mount("", "/", _FROM_FD, from_fd=root)
    _Tree(program, root, sources, devices).add(entries)
    program.mount_setattr("", _EMPTY, attr_set=_RDONLY, dir_fd=root)
    program.fchdir(root)
    program.pivot_root(".", ".")  # the old root lies above the new one
    program.umount2(".", _DETACH)
    program.chdir("/")
    program.umask(_UMASK)


class _Tree:
    """The new tree, while it is made."""

    def __init__(
        self,
        program: Program,
        root: Result,
        sources: Mapping[str, Result],
        devices: Mapping[str, Result],
    ) -> None:
        self._program = program
        self._root = root
        self._sources = sources
        self._devices = devices
        self._made = set[str]()  # directories that are there
        self._foreign = set[str]()  # mounts of ours: nothing is created below them

    def add(self, entries: Mapping[str, Entry]) -> None:
        for path, entry in entries.items():
            self._place(path, entry)

    def _place(self, path: str, entry: Entry) -> None:
        program = self._program
        if isinstance(entry, Symlink | File):
            where = self._parent(path)
            name = posixpath.basename(path)
            if isinstance(entry, Symlink):
                program.symlink(entry.target, name, dir_fd=where)
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            file = program.open(name, flags, 0o600, dir_fd=where)
            if entry.data:
                program.write(file, entry.data)
            program.syscall("fchmod", file, entry.mode)
            program.close(file)
        elif isinstance(entry, Bind):
            self._mount(self._sources[path], path, is_file=entry.is_file)
            self._foreign.add(path)
        elif isinstance(entry, Tmpfs):
            self._mount(_tmpfs(program, entry), path)
        elif isinstance(entry, Proc):
            self._mount(_filesystem(program, "proc", {}, _PRIVILEGE | _NOEXEC), path)
        elif isinstance(entry, Devices):
            self._devices_at(path, entry)
        else:
            self._directory(path, entry.mode)

    def _parent(self, path: str) -> Result:
        parent = posixpath.dirname(path)
        if not parent:
            return self._root
        self._directory(parent)
        return self._at(parent)

    def _at(self, path: str) -> Result:
        """Open what is there, by no symbolic link."""
        return self._program._add("openat2", (self._root, path, _HOW, len(_HOW)), path=1)

    def _is_foreign(self, path: str) -> bool:
        return any(parent in self._foreign for parent in [*_parents(path), path])

    def _directory(self, path: str, mode: int = 0o755) -> None:
        for each in [*_parents(path), path]:
            if each in self._made or self._is_foreign(each):
                continue
            name, where = posixpath.basename(each), self._root
            if parent := posixpath.dirname(each):
                where = self._at(parent)
            self._program.mkdir(
                name, mode if each == path else 0o755, dir_fd=where, tolerate=[errno.EEXIST]
            )
            self._made.add(each)

    def _mount(self, mount: Result, path: str, *, is_file: bool = False) -> None:
        program = self._program
        if not is_file:
            self._directory(path)
        elif not self._is_foreign(posixpath.dirname(path)):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            name = posixpath.basename(path)
            program.close(program.open(name, flags, 0o444, dir_fd=self._parent(path)))
        program.move_mount("", "", _FD_TO_FD, from_fd=mount, to_fd=self._at(path))

    def _devices_at(self, path: str, entry: Devices) -> None:
        program = self._program
        dev = _tmpfs(program, Tmpfs(1 << 16, 100))
        self._mount(dev, path)
        for name, device in self._devices.items():
            self._mount(device, f"{path}/{name}", is_file=True)
        options = {"ptmxmode": "0666", "mode": "0620"}
        self._mount(_filesystem(program, "devpts", options, _PRIVILEGE_OF_DEVPTS), f"{path}/pts")
        self._mount(_tmpfs(program, Tmpfs(entry.shm, mode=0o1777)), f"{path}/shm")
        for name, target in _LINKS_OF_DEVICES.items():
            program.symlink(target, name, dir_fd=dev)
        program.mount_setattr("", _EMPTY, attr_set=_RDONLY, dir_fd=dev)


_PRIVILEGE_OF_DEVPTS = _ATTRIBUTES["MOUNT_ATTR_NOSUID"] | _NOEXEC


def _open(program: Program, entry: Bind) -> Result:
    """Open a copy of a mount of ours, with its attributes."""
    is_device = entry.source.startswith("/dev/") and entry.is_file
    tree = program.open_tree(entry.source, _CLONE | (0 if entry.is_file else _AT["AT_RECURSIVE"]))
    attributes = _ATTRIBUTES["MOUNT_ATTR_NOSUID"] if is_device else _PRIVILEGE
    attributes |= 0 if entry.writable else _RDONLY
    flags = _EMPTY if entry.is_file else _EVERYWHERE
    program.mount_setattr("", flags, attr_set=attributes, dir_fd=tree)
    return tree


def _tmpfs(program: Program, entry: Tmpfs) -> Result:
    options = {
        "size": str(entry.size),
        "nr_inodes": str(entry.inodes),
        "mode": f"{entry.mode:o}",
    }
    return _filesystem(program, "tmpfs", options, _PRIVILEGE)


def _filesystem(program: Program, kind: str, options: Mapping[str, str], attributes: int) -> Result:
    """Make a mount of a new file system."""
    context = program.fsopen(kind)
    for key, value in options.items():
        program.fsconfig(context, _SET_STRING, key, value)
    program.fsconfig(context, _CREATE)
    return program.fsmount(context, attributes)
