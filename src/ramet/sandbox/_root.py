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
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from ramet import _names
from ramet._program import Program, Result
from ramet._record import Record

_AT = _names.AT
_ATTRIBUTES = _names.MOUNT_ATTR
_RDONLY, _NOEXEC = _ATTRIBUTES["MOUNT_ATTR_RDONLY"], _ATTRIBUTES["MOUNT_ATTR_NOEXEC"]
_PRIVILEGE = _ATTRIBUTES["MOUNT_ATTR_NOSUID"] | _ATTRIBUTES["MOUNT_ATTR_NODEV"]
_EMPTY = _AT["AT_EMPTY_PATH"]
_CLONE = _names.OPEN_TREE["OPEN_TREE_CLONE"] | os.O_CLOEXEC
_SET_FLAG = _names.FSCONFIG["FSCONFIG_SET_FLAG"]
_SET_STRING = _names.FSCONFIG["FSCONFIG_SET_STRING"]
_CREATE = _names.FSCONFIG["FSCONFIG_CMD_CREATE"]
_FROM_FD = _names.MOVE_MOUNT["MOVE_MOUNT_F_EMPTY_PATH"]
_FD_TO_FD = _FROM_FD | _names.MOVE_MOUNT["MOVE_MOUNT_T_EMPTY_PATH"]
_PRIVATE = _names.MS["MS_REC"] | _names.MS["MS_PRIVATE"]
_UMASK = 0o022
_DETACH = _names.UMOUNT["MNT_DETACH"]
# struct open_how (linux/openat2.h), with RESOLVE_NO_SYMLINKS and RESOLVE_BENEATH.
_PATH = os.O_PATH | os.O_CLOEXEC
_ANYWHERE = struct.pack("=3Q", _PATH, 0, 0x04)
_BENEATH = struct.pack("=3Q", _PATH | os.O_NOFOLLOW, 0, 0x08 | 0x04)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_SCRATCH = ".overlay"  # where the upper layers of overlays are while they are mounted
_BLANK = ".blank"  # an empty file, of calls

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS_OF_DEVICES = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}


class Bind(Record):
    """A file or directory of ours, with all that is mounted in it.

    Attributes:
        source: the path here. Symbolic links in it are followed when the policy is made, and not
            afterwards: so nobody can lead it elsewhere.
        writable: it may be written to, as far as its modes allow.
        missing_ok: there is nothing if the source does not exist.
    """

    source: str | os.PathLike[str]
    writable: bool = False
    missing_ok: bool = False


class Overlay(Record):
    """A directory of ours that seems to be writable: changes are in memory, and thrown away.

    A file whose owner is no user of the sandbox cannot be changed (EOVERFLOW): the kernel would
    have to make a copy that nobody there owns.

    Attributes:
        source: the path here, as of `Bind`. Nothing may be mounted in it: the kernel does not
            show what lies below that.
        size: bytes that the changes may take.
        inodes: files that may be changed.
    """

    source: str | os.PathLike[str]
    size: int = 64 << 20
    inodes: int = 10_000


class Tmpfs(Record):
    """An empty directory in memory, which may be written to.

    Attributes:
        size: bytes that it may hold.
        inodes: files that it may hold.
        mode: its permissions.
    """

    size: int = 64 << 20
    inodes: int = 10_000
    mode: int = 0o755


class Directory(Record):
    """An empty directory, which cannot be written to unless it is in a tmpfs.

    Attributes:
        mode: its permissions.
    """

    mode: int = 0o755


class Symlink(Record):
    """A symbolic link.

    Attributes:
        target: where it leads.
    """

    target: str


class File(Record):
    """A file made of bytes.

    Attributes:
        data: what it holds.
        mode: its permissions.
    """

    data: bytes
    mode: int = 0o444


class Proc(Record):
    """The processes of the sandbox: proc(5), read-only."""


class Devices(Record):
    """A minimal /dev: null, zero, full, random, urandom, tty, terminals and shared memory.

    Attributes:
        shm: bytes that its /dev/shm may hold.
    """

    shm: int = 64 << 20


Entry = Bind | Overlay | Tmpfs | Directory | Symlink | File | Proc | Devices


class Source(Record):
    """What a `Bind` is made of: a path without symbolic links.

    Attributes:
        path: where it is here.
        writable: it may be written to.
        is_file: it is no directory.
        device: it is a device, which can be used.
    """

    path: str
    writable: bool = False
    is_file: bool = False
    device: bool = False


class _Terminals(Record):
    """Those of a /dev: devpts."""


class _WritableProc(Record):
    """As `Proc`, but not read-only."""


Checked = (
    Source
    | Overlay
    | Tmpfs
    | Directory
    | Symlink
    | File
    | Proc
    | Devices
    | _Terminals
    | _WritableProc
)


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


def check(entries: Mapping[str, Entry]) -> dict[str, Checked]:
    """Check the entries of a root directory, and put them in the order in which they are made.

    Args:
        entries: what is there, by paths in the sandbox.

    Returns:
        They, by normalized paths, each behind the directories that it is in; with the files and
        directories that they are made of looked up.

    Raises:
        FileNotFoundError: there is no such file or directory here.
        NotADirectoryError: what an overlay lies over is none.
        TypeError: something is no entry.
        ValueError: a path is bad, comes twice, or lies in what is no directory; a size or mode
            that there is not; something is mounted in what an overlay lies over.
    """
    found: dict[str, Checked] = {}
    for path, entry in entries.items():
        normal = normalize(path)
        if normal in found:
            raise ValueError(f"there is more than one entry for {path!r}")
        if normal.split("/")[0] in {_SCRATCH, _BLANK}:
            raise ValueError(f"/{normal} is for what is mounted")
        checked = _check_entry(path, entry)
        if checked is not None:
            found[normal] = checked
    for normal in found:
        for parent in _parents(normal):
            above = found.get(parent, Directory())
            if isinstance(above, Symlink | File) or (isinstance(above, Source) and above.is_file):
                raise ValueError(f"/{normal} lies in /{parent}, which is no directory")
            if isinstance(above, Proc | Devices):
                raise ValueError(f"/{normal} lies in /{parent}, where nothing can be made")
    return dict(sorted(found.items(), key=lambda item: item[0].split("/")))


_SIZES = ("size", "inodes", "shm")
_HIGHEST_MODE = 0o1777


def _check_entry(path: str, entry: Entry) -> Checked | None:
    if not isinstance(entry, Entry):
        raise TypeError(f"{path!r} must be a Bind, Tmpfs or the like, not {entry!r}")
    _check_values(path, entry)
    if isinstance(entry, File):
        return entry.replace(data=bytes(memoryview(entry.data)))
    if isinstance(entry, Overlay):
        source = os.path.realpath(entry.source, strict=True)
        if not os.path.isdir(source):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), source)
        if mounts := _mounts_in(source):
            raise ValueError(
                f"{path!r}: no overlay can be laid over {source!r}, in which something is mounted: "
                + ", ".join(mounts)
            )
        return entry.replace(source=source)
    if isinstance(entry, Bind):
        try:
            source = os.path.realpath(entry.source, strict=True)
        except FileNotFoundError:
            if entry.missing_ok:
                return None
            raise
        return Source(source, bool(entry.writable), not os.path.isdir(source))
    return entry


def _check_values(path: str, entry: Entry) -> None:
    for name in _SIZES:
        size = getattr(entry, name, 1)
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size < 1 << 63:
            raise ValueError(f"{path!r}: {name} must be a positive number: {size!r}")
    mode = getattr(entry, "mode", 0)
    if not isinstance(mode, int) or not 0 <= mode <= _HIGHEST_MODE:
        raise ValueError(f"{path!r}: mode must be permissions, and no more than 0o1777: {mode!r}")
    if isinstance(entry, Symlink):
        target = entry.target
        if not isinstance(target, str):
            raise TypeError(f"{path!r}: a symbolic link's target must be a string, not {target!r}")
        if not target or "\0" in target:
            raise ValueError(f"{path!r}: a symbolic link leads somewhere: {target!r}")


def _mounts_in(directory: str) -> list[str]:
    """List what is mounted in a directory, which is locked there (mount_namespaces(7))."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [_ESCAPED.sub(_unescape, line.split(" ")[4]) for line in file]
    return [each for each in points if each.startswith(f"{directory.rstrip('/')}/") and each != "/"]


_ESCAPED = re.compile(r"\\([0-7]{3})")


def _unescape(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def add_sources(program: Program, entries: Mapping[str, Checked]) -> dict[str, Result]:
    """Add the steps that open what is ours.

    The child needs CAP_SYS_ADMIN in mount and user namespaces of its own, and the ids by which it
    may get at the files.

    Args:
        program: where to add them.
        entries: as `check` returns them.

    Returns:
        Mounts that are nowhere yet, by the paths that they are for.
    """
    # What is mounted here does not go to our namespace. Nor does what is mounted there later come
    # here: it would be what the policy does not list, and without the attributes of the binds.
    program.mount(None, "/", None, _PRIVATE)
    found = {}
    for path, entry in entries.items():
        if isinstance(entry, Source):
            found[path] = _open(program, entry)
        elif isinstance(entry, Overlay):
            found[path] = _open(program, Source(os.fspath(entry.source)), recursive=False)
        elif isinstance(entry, Devices):
            for name in _DEVICES:
                device = Source(f"/dev/{name}", writable=True, is_file=True, device=True)
                found[f"{path}/{name}"] = _open(program, device)
    return found


def for_calls(entries: Mapping[str, Checked]) -> dict[str, Checked]:
    """Give the entries of a root directory in which `add_fresh` makes anew what can change.

    Its /proc can be written to: that is how a child there maps its ids. The user should not be root
    outside, see `_proc`. Nothing lies over a part of it, or no other could be mounted
    (mount_too_revealing, fs/namespace.c).
    """
    found: dict[str, Checked] = {_BLANK: File(b"", mode=0)}
    for path, entry in entries.items():
        found[path] = entry
        if isinstance(entry, Overlay):
            found |= {_SCRATCH: Directory(0o700), path: Source(os.fspath(entry.source))}
        elif isinstance(entry, Proc):
            found[path] = _WritableProc()
    return found


def add_fresh(program: Program, entries: Mapping[str, Checked]) -> None:
    """Add the steps that make anew what can change, for one call.

    The child needs CAP_SYS_ADMIN in mount, pid and user namespaces of its own, of which the first
    is a copy of one with such a root directory. That is its working directory then.

    Args:
        program: where to add them.
        entries: those of the policy, and not as `for_calls` has them.
    """
    below = {
        path: entry
        for path, entry in entries.items()
        if any(isinstance(entries.get(each), Tmpfs | Overlay) for each in _parents(path))
    }
    fresh: dict[str, Checked] = {}
    for path, entry in entries.items():
        if path in below or isinstance(entry, Tmpfs | Overlay | Proc):
            fresh[path] = entry
        elif isinstance(entry, Devices):
            fresh |= _changing_devices(path, entry)
    program.chdir("/")
    program.umask(0)
    root = program.open("/", _PATH)
    tree = _Tree(program, root, _reopen(program, below), f"/{_BLANK}")
    tree.has([_SCRATCH, *(path for path in fresh if path not in below)])
    tree.add(fresh)
    program.close(root)
    program.umask(_UMASK)


def _reopen(program: Program, entries: Mapping[str, Checked]) -> dict[str, Result]:
    """Open what is mounted of ours, before it is covered."""
    paths = [path for path, entry in entries.items() if isinstance(entry, Source | Overlay)]
    for path, entry in entries.items():
        if isinstance(entry, Devices):
            paths += [f"{path}/{name}" for name in _DEVICES]
    return {path: program.open_tree(path, _CLONE | _AT["AT_RECURSIVE"]) for path in paths}


def add_root(
    program: Program, entries: Mapping[str, Checked], sources: Mapping[str, Result]
) -> None:
    """Add the steps that make a root directory, and move to it.

    The child needs CAP_SYS_ADMIN in mount, pid and user namespaces of its own, and ids that these
    have. Its working directory is the root directory then, its umask 022.

    Args:
        program: where to add them.
        entries: as `check` returns them.
        sources: as `add_sources` returns them.
    """
    program.umask(0)  # the modes are those that were asked for
    data = [entry.data for entry in entries.values() if isinstance(entry, File)]
    size = _ROOM + sum(len(each) + _PAGE for each in data)
    root = _tmpfs(program, Tmpfs(size, inodes=_ROOM_FOR_NAMES * (len(entries) + 1)))
    # The root of the old tree is still what paths begin at, and can be used all the time.
    program.move_mount("", "/", _FROM_FD, from_fd=root)
    program.fchdir(root)
    tree = _Tree(program, root, sources)
    tree.add(entries)
    if any(isinstance(entry, Overlay) for entry in entries.values()):
        program.syscall("unlinkat", root, _SCRATCH, _AT["AT_REMOVEDIR"])
    program.mount_setattr("", _EMPTY, attr_set=_RDONLY, dir_fd=root)
    program.pivot_root(".", ".")  # the old root lies above the new one
    program.umount2(".", _DETACH)
    program.chdir("/")
    program.umask(_UMASK)


_PAGE = os.sysconf("SC_PAGESIZE")
_ROOM = 1 << 20
_ROOM_FOR_NAMES = 64


class _Tree:
    """The new tree, while it is made."""

    def __init__(
        self,
        program: Program,
        root: Result,
        sources: Mapping[str, Result],
        blank: str = "/dev/null",
    ) -> None:
        """Begin; `blank` is a file that nobody can open, if it is mounted without devices."""
        self._program = program
        self._root = root
        self._sources = sources
        self._blank = blank
        self._made = {""}  # directories that are there
        self._foreign = dict[str, bool]()  # mounts, and whether nothing is created below them

    def has(self, paths: Iterable[str]) -> None:
        """Note directories that are there, with those that they are in."""
        for path in paths:
            self._made |= {*_parents(path), path}

    def add(self, entries: Mapping[str, Checked]) -> None:
        for path, entry in entries.items():
            self._place(path, entry)

    def _place(self, path: str, entry: Checked) -> None:
        program = self._program
        if isinstance(entry, Symlink | File):
            parent, name = posixpath.split(path)
            self._directory(parent)
            with self._opened(parent) as where:
                if isinstance(entry, Symlink):
                    program.symlink(entry.target, name, dir_fd=where)
                else:
                    self._file(name, entry, where)
        elif isinstance(entry, Source):
            self._mount(self._sources[path], path, is_file=entry.is_file)
            self._foreign[path] = True
        elif isinstance(entry, Overlay):
            if path in self._sources:
                self._mount(self._sources[path], path)
            self._overlay(path, entry)
            self._is_ours(path)
        elif isinstance(entry, Tmpfs):
            self._mount(_tmpfs(program, entry), path)
            self._is_ours(path)
        elif isinstance(entry, Proc):
            self._mount(_proc(program, _RDONLY), path)
            self._hide_keys(f"{path}/keys")
        elif isinstance(entry, _WritableProc):
            self._mount(_proc(program), path)
        elif isinstance(entry, Devices):
            self._devices_at(path, entry)
        elif isinstance(entry, _Terminals):
            options = {"ptmxmode": "0666", "mode": "0620"}
            self._mount(_filesystem(program, "devpts", options, _PRIVILEGE_OF_DEVPTS), path)
        else:
            self._directory(path, entry.mode)

    def _file(self, name: str, entry: File, where: Result) -> None:
        program = self._program
        file = program.open(name, _NEW, 0o600, dir_fd=where)
        if entry.data:
            size = len(entry.data)
            program._add("write", (file, entry.data, size), expect=size, spell=_hide)
        program.syscall("fchmod", file, entry.mode)
        program._close(file)

    def _overlay(self, path: str, entry: Overlay) -> None:
        """Lay a writable layer over a directory that is mounted there."""
        program = self._program
        self._directory(_SCRATCH, 0o700)
        layer = _tmpfs(program, Tmpfs(entry.size, entry.inodes))
        self._attach(layer, _SCRATCH, keep=True)
        program.mkdir("upper", 0o755, dir_fd=layer)
        program.mkdir("work", 0o755, dir_fd=layer)
        program._close(layer)
        options = {
            # Relative to the new root, which is the working directory.
            "lowerdir": path.replace("\\", "\\\\").replace(":", "\\:"),
            "upperdir": f"{_SCRATCH}/upper",
            "workdir": f"{_SCRATCH}/work",
        }
        overlay = _filesystem(program, "overlay", options, _PRIVILEGE, flags=["userxattr"])
        self._attach(overlay, path)
        program.umount2(_SCRATCH, _DETACH)  # the overlay has a mount of its own

    def _hide_keys(self, path: str) -> None:
        """Lay what cannot be opened over the list of keys: it shows all that its user has."""
        if os.path.exists("/proc/keys"):  # not every kernel has them
            self._attach(_open(self._program, Source(self._blank, is_file=True)), path)

    @contextmanager
    def _opened(self, path: str) -> Iterator[Result]:
        """Open what is there, by no symbolic link, for the steps of the block."""
        if not path:
            yield self._root
            return
        there = _openat2(self._program, self._root, path, _BENEATH)
        yield there
        self._program._close(there)

    def _attach(self, mount: Result, path: str, *, keep: bool = False) -> None:
        """Put a mount on what is there, and close it unless it is to be kept."""
        with self._opened(path) as target:
            self._program.move_mount("", "", _FD_TO_FD, from_fd=mount, to_fd=target)
        if not keep:
            self._program._close(mount)

    def _is_ours(self, path: str) -> None:
        """Note a mount in which things can be created, whatever it lies in."""
        self._foreign[path] = False
        self._made.add(path)

    def _is_foreign(self, path: str) -> bool:
        nearest = (self._foreign[at] for at in [path, *_parents(path)[::-1]] if at in self._foreign)
        return next(nearest, False)

    def _directory(self, path: str, mode: int = 0o755) -> None:
        for each in [*_parents(path), path]:
            if each in self._made or self._is_foreign(each):
                continue
            parent, name = posixpath.split(each)
            wanted = mode if each == path else 0o755
            with self._opened(parent) as where:
                self._program.mkdir(name, wanted, dir_fd=where, tolerate=[errno.EEXIST])
            self._made.add(each)

    def _mount(
        self, mount: Result, path: str, *, is_file: bool = False, keep: bool = False
    ) -> None:
        program = self._program
        parent, name = posixpath.split(path)
        if not is_file:
            self._directory(path)
        elif not self._is_foreign(parent):
            self._directory(parent)
            with self._opened(parent) as where:
                program._close(program.open(name, _NEW, 0o444, dir_fd=where))
        self._attach(mount, path, keep=keep)

    def _devices_at(self, path: str, entry: Devices) -> None:
        program = self._program
        dev = _tmpfs(program, Tmpfs(1 << 16, 100))
        self._mount(dev, path, keep=True)
        for name in _DEVICES:
            self._mount(self._sources[f"{path}/{name}"], f"{path}/{name}", is_file=True)
        self.add(_changing_devices(path, entry))
        for name, target in _LINKS_OF_DEVICES.items():
            program.symlink(target, name, dir_fd=dev)
        program.mount_setattr("", _EMPTY, attr_set=_RDONLY, dir_fd=dev)
        program._close(dev)


def _changing_devices(path: str, entry: Devices) -> dict[str, Checked]:
    """What in a /dev is not the same for everybody."""
    return {f"{path}/pts": _Terminals(), f"{path}/shm": Tmpfs(entry.shm, mode=0o1777)}


_PRIVILEGE_OF_DEVPTS = _ATTRIBUTES["MOUNT_ATTR_NOSUID"] | _NOEXEC


def writable_paths(entries: Mapping[str, Checked]) -> dict[str, bool]:
    """List what can be written to, as absolute paths, and whether each is a file."""
    found = {}
    for path, entry in entries.items():
        if isinstance(entry, Tmpfs | Overlay) or (isinstance(entry, Source) and entry.writable):
            found[f"/{path}"] = isinstance(entry, Source) and entry.is_file
        elif isinstance(entry, Devices):
            found |= {f"/{path}/pts": False, f"/{path}/shm": False}
    return found


def _hide(_: int, arg: object) -> str:
    """Render what is written: it may be a secret."""
    return f"<{len(arg)} bytes>" if isinstance(arg, bytes) else ""


def _openat2(program: Program, directory: int | Result, path: str, how: bytes) -> Result:
    return program._add("openat2", (directory, path, how, len(how)), path=1)


def _open(program: Program, source: Source, *, recursive: bool = True) -> Result:
    """Open a copy of a mount of ours, with its attributes."""
    everywhere = recursive and not source.is_file
    flags = _AT["AT_RECURSIVE"] if everywhere else 0
    file = _openat2(program, _names.AT_FDCWD, source.path, _ANYWHERE)
    tree = program.open_tree("", _CLONE | _EMPTY | flags, dir_fd=file)
    program._close(file)
    attributes = _ATTRIBUTES["MOUNT_ATTR_NOSUID"] if source.device else _PRIVILEGE
    attributes |= 0 if source.writable else _RDONLY
    program.mount_setattr("", _EMPTY | flags, attr_set=attributes, dir_fd=tree)
    return tree


def _tmpfs(program: Program, entry: Tmpfs) -> Result:
    options = {
        "size": str(entry.size),
        "nr_inodes": str(entry.inodes),
        "mode": f"{entry.mode:o}",
    }
    return _filesystem(program, "tmpfs", options, _PRIVILEGE)


def _proc(program: Program, attributes: int = 0) -> Result:
    """Mount the processes of the pid namespace.

    Read-only it should be, since the owner of /proc/sys is the user 0 of the machine, whatever his
    capabilities (test_perm, fs/proc/proc_sysctl.c).
    """
    return _filesystem(program, "proc", {}, _PRIVILEGE | _NOEXEC | attributes)


def _filesystem(
    program: Program,
    kind: str,
    options: Mapping[str, str],
    attributes: int,
    flags: Iterable[str] = (),
) -> Result:
    """Make a mount of a new file system."""
    context = program.fsopen(kind)
    for key, value in options.items():
        program.fsconfig(context, _SET_STRING, key, value)
    for key in flags:
        program.fsconfig(context, _SET_FLAG, key)
    program.fsconfig(context, _CREATE)
    mount = program.fsmount(context, attributes)
    program._close(context)
    return mount
