"""Policy: what a sandbox allows, as data. Checks it, and reads it from TOML; starts nothing."""

from __future__ import annotations

import math
import os
import re
import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, Self

from ramet._record import Record
from ramet._spawn import IdMap
from ramet._steps import Filter, capability
from ramet.sandbox._presets import basic_files, network_files, python_files, system_files
from ramet.sandbox._root import (
    Bind,
    Checked,
    Devices,
    Directory,
    Entry,
    File,
    Overlay,
    Proc,
    Symlink,
    Tmpfs,
    check,
    normalize,
)
from ramet.sandbox._seccomp import check_names

SHAREABLE = frozenset(("ipc", "uts", "cgroup"))
OPTIONAL = frozenset(
    (
        *("network", "ipc", "uts", "cgroup_namespace", "seccomp", "landlock"),
        *("memory", "swap", "processes", "cpu"),
    )
)
"""Protections that can be missing; without the others there is no sandbox."""

_LONGEST_HOSTNAME = 64
_SWITCHES = ("system", "python", "seccomp", "landlock")
_MOST = 1 << 32  # seconds, and processors
_MOST_IDS = (1 << 32) - 1
_NEEDED = frozenset(("execve", "execveat", "exit", "exit_group"))  # by what starts the program
LIMITS = {
    name.removeprefix("RLIMIT_").lower(): getattr(resource, name)
    for name in dir(resource)
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"  # BSD's name of RLIMIT_NOFILE
}
"""RLIMIT_* by names in small letters."""

# Those that have a field of their own, and those about which nobody asks.
_OF_FIELDS = {"cpu": "cpu_time", "fsize": "file_size", "nproc": "processes"}


_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Policy(Record, kw_only=True):
    """See `Sandbox`."""

    files: Mapping[str, Entry] = _NOTHING
    system: bool = False
    python: bool = False
    cwd: str = "/"
    env: Mapping[str, str] = _NOTHING
    uid: int = 1000
    gid: int = 1000
    uid_map: IdMap | None = None
    gid_map: IdMap | None = None
    hostname: str = "sandbox"
    network: Literal["none", "host"] = "none"
    share: Iterable[str] = frozenset()
    capabilities: Iterable[str] = frozenset()
    seccomp: bool = True
    allow_syscalls: Iterable[str] = frozenset()
    deny_syscalls: Iterable[str] = frozenset()
    seccomp_filters: Sequence[bytes] = ()
    landlock: bool = True
    rlimits: Mapping[str, int | tuple[int, int]] = _NOTHING
    memory: int | None = None
    swap: int | None = None
    processes: int | None = None
    cpu: float | None = None
    cgroup: str | os.PathLike[str] | None = None
    cpu_time: float | None = None
    wall_time: float | None = None
    output_size: int = 16 << 20
    file_size: int | None = None
    preload: Sequence[str] = ()
    require: Iterable[str] | None = None
    optional: Iterable[str] = frozenset()

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        for name in ("files", "env", "rlimits"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise TypeError(f"{name} must be a mapping, not {value!r}")
            set_(self, name, MappingProxyType(dict(value)))
        found = {path: _anchored(entry) for path, entry in self.files.items()}
        set_(self, "files", MappingProxyType(found))
        for name in ("share", "capabilities", "allow_syscalls", "deny_syscalls", "optional"):
            set_(self, name, _names(name, getattr(self, name)))
        set_(self, "preload", tuple(_strings("preload", self.preload)))
        filters = tuple(bytes(memoryview(each)) for each in self.seccomp_filters)
        set_(self, "seccomp_filters", filters)
        for each in filters:
            Filter(each)  # checks it
        if self.require is not None:
            set_(self, "require", _names("require", self.require))
        if self.cgroup is not None:
            set_(self, "cgroup", _absolute(self.cgroup))
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be true or false, not {getattr(self, name)!r}")
        self._check_names()
        self._check_numbers()
        self._check_limits()
        self._check_ids()
        if self.cwd != "/":
            normalize(self.cwd)
        set_(self, "_entries", self._find_entries())

    def _check_names(self) -> None:
        _choose("network", [self.network], {"none", "host"})
        _choose("share", self.share, SHAREABLE)
        for name in self.capabilities:
            capability(name)
        for name in ("allow_syscalls", "deny_syscalls"):
            if getattr(self, name):
                if not self.seccomp:
                    raise ValueError(f"{name} is for seccomp, which is switched off")
                check_names(getattr(self, name))
        if needed := _NEEDED & set(self.deny_syscalls):
            raise ValueError(f"nothing could run without {', '.join(sorted(needed))}")
        if self.require is not None and self.optional:
            raise ValueError("give require, or optional: each says the same of the other names")
        _choose("optional", self.optional, OPTIONAL)
        if self.require is not None:
            _choose("require", self.require, OPTIONAL)
        name = self.hostname
        if not isinstance(name, str):
            raise TypeError(f"hostname must be a string, not {name!r}")
        if not name or len(os.fsencode(name)) > _LONGEST_HOSTNAME or "\0" in name or "\n" in name:
            raise ValueError(f"hostname must have 1 to {_LONGEST_HOSTNAME} bytes: {name!r}")
        for key, value in self.env.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise TypeError(f"env must have strings: {key!r}: {value!r}")
            if not key or "=" in key or "\0" in key + value:
                raise ValueError(f"env can't have {key!r}: {value!r}")

    def _check_numbers(self) -> None:
        for name in ("memory", "swap", "processes", "output_size", "file_size"):
            value = getattr(self, name)
            if value is None and name != "output_size":
                continue
            least = 0 if name == "swap" else 1
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be a whole number, not {value!r}")
            if not least <= value < 1 << 62:
                raise ValueError(f"{name} must be at least {least}, and below 2**62: {value}")
        for name in ("cpu", "cpu_time", "wall_time"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise TypeError(f"{name} must be a number, not {value!r}")
            if not 0 < value < _MOST:
                raise ValueError(f"{name} must be a positive number, and not above 2**32: {value}")
        if self.swap is not None and self.memory is None:
            raise ValueError("swap is for what does not fit into memory, which has no limit")

    def _check_limits(self) -> None:
        for name, both in self.rlimits.items():
            _choose("rlimits", [name], LIMITS)
            if name in _OF_FIELDS:
                raise ValueError(f"{_OF_FIELDS[name]} sets this limit, not rlimits[{name!r}]")
            numbers = _integers((both,) if isinstance(both, int) else both)
            if numbers is None or len(numbers) not in {1, 2}:
                raise TypeError(f"rlimits[{name!r}] must be a limit, or soft and hard: {both!r}")
            if not all(-1 <= each < 1 << 64 for each in numbers):
                raise ValueError(f"rlimits[{name!r}] must be -1 (none) or more: {both!r}")
            # -1 is the greatest number.
            if numbers[0] % (1 << 64) > numbers[-1] % (1 << 64):
                raise ValueError(f"rlimits[{name!r}] must not be above the hard limit: {both!r}")

    def _check_ids(self) -> None:
        for name in ("uid", "gid"):
            id_ = getattr(self, name)
            if not isinstance(id_, int) or isinstance(id_, bool):
                raise TypeError(f"{name} must be a number, not {id_!r}")
            if not 0 <= id_ < _MOST_IDS:
                raise ValueError(f"{name} must be 0 to {_MOST_IDS - 1}: {id_}")
        for name, id_ in (("uid_map", self.uid), ("gid_map", self.gid)):
            given = getattr(self, name)
            if given is None:
                continue
            lines = _triples(((given, 0, 1),) if isinstance(given, int) else given)
            if lines is None or isinstance(given, bool):
                raise TypeError(f"{name} must be an id, or triples of numbers, not {given!r}")
            if not isinstance(given, int):
                object.__setattr__(self, name, lines)
            if any(min(line) < 0 or max(line) >= 1 << 32 for line in lines):
                raise ValueError(f"{name} has ids that there are not: {given}")
            if not any(first <= id_ < first + count for first, _, count in lines):
                raise ValueError(f"{name} must have {id_} in it: {given}")

    # --- what it comes to -------------------------------------------------------------------

    def is_optional(self, name: str) -> bool:
        """Whether a protection may be missing."""
        if self.require is not None:
            return name in OPTIONAL and name not in self.require
        return name in self.optional

    @property
    def entries(self) -> Mapping[str, Checked]:
        """All that is in the root directory."""
        found: Mapping[str, Checked] = self._entries  # type: ignore[attr-defined]
        return found

    def _find_entries(self) -> dict[str, Checked]:
        found: dict[str, Entry] = {}
        if self.system or self.python:
            found |= basic_files(self.uid, self.gid, self.hostname)
        if self.python:
            found |= python_files()
        if self.system:
            found |= system_files()
        if self.network == "host" and found:
            found |= network_files()
        # Those of the user's own take the place of those.
        own = {normalize(path) for path in self.files}
        found = {path: entry for path, entry in found.items() if normalize(path) not in own}
        return check({**found, **self.files})

    def limits(self) -> dict[int, tuple[int, int]]:
        """Give the limits of each process, by RLIMIT_*."""
        found = {resource.RLIMIT_CORE: (0, 0)}
        for name, both in self.rlimits.items():
            soft, hard = (both, both) if isinstance(both, int) else both
            found[LIMITS[name]] = soft, hard
        if self.file_size is not None:
            found[resource.RLIMIT_FSIZE] = self.file_size, self.file_size
        if self.cpu_time is not None:
            seconds = math.ceil(self.cpu_time)
            found[resource.RLIMIT_CPU] = seconds, seconds + 1
        return found

    def fields(self) -> dict[str, Any]:
        """Give the arguments that make a policy like this one."""
        return {
            name: dict(value) if isinstance(value, MappingProxyType) else value
            for name, value in super().fields().items()
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (type(self), self.fields())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a policy from a TOML file.

        Its keys are the arguments. Sizes may be strings (``"64M"``, ``"1.5G"``), and paths of ours
        begin at the directory of the file. ``[files."/path"]`` is a table with ``bind``
        (``writable``, ``missing_ok``), ``overlay`` (``size``, ``inodes``), ``tmpfs`` (its size;
        ``inodes``, ``mode``), ``directory = true`` (``mode``), ``symlink``, ``file`` (its text;
        ``mode``), ``proc = true`` or ``devices = true`` (``shm``).

        Args:
            path: the file.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no TOML, or says what there is not.
            TypeError: a value of a wrong kind.
        """
        import tomllib  # noqa: PLC0415 - for files only

        text = _read(path)
        try:
            content = tomllib.loads(text.decode())
            return cls(**_from_toml(content, os.path.dirname(os.path.abspath(path))))
        except (TypeError, ValueError) as error:  # not of its own class: some want more arguments
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{os.fspath(path)}: {error}") from None


def _make(kind: type[Policy], fields: dict[str, Any]) -> Policy:
    return kind(**fields)


def _absolute(path: str | os.PathLike[str]) -> str:
    """Make a path mean the same in any working directory, and in other processes."""
    text = os.fspath(path)
    return text if os.path.isabs(text) else os.path.join(os.getcwd(), text)


def _anchored(entry: Entry) -> Entry:
    if isinstance(entry, Bind | Overlay):
        return entry.replace(source=_absolute(entry.source))
    return entry


def _strings(name: str, value: Iterable[str]) -> list[str]:
    if isinstance(value, str | bytes):
        raise TypeError(f"{name} must be several names, not one string: {value!r}")
    found = list(value)
    for each in found:
        if not isinstance(each, str):
            raise TypeError(f"{name} must have strings, not {each!r}")
    return found


def _names(name: str, value: Iterable[str]) -> frozenset[str]:
    return frozenset(_strings(name, value))


def _integers(value: Any) -> tuple[int, ...] | None:
    """Give several whole numbers as a tuple; None if they are something else."""
    is_several = isinstance(value, Iterable) and not isinstance(value, str | bytes)
    found = tuple(value) if is_several else (None,)
    is_whole = all(isinstance(each, int) and not isinstance(each, bool) for each in found)
    return found if is_whole else None


def _triples(value: Any) -> tuple[tuple[int, int, int], ...] | None:
    found = [_integers(each) for each in value] if isinstance(value, Iterable) else [None]
    if any(each is None or len(each) != 3 for each in found):
        return None
    return tuple(found)  # type: ignore[arg-type] # each was looked at


def _choose(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse what is not among the known names, with that which may have been meant."""
    choices = sorted(known)
    for each in given:
        if each not in choices:
            import difflib  # noqa: PLC0415 - for errors only

            close = difflib.get_close_matches(str(each), choices, 1)
            hint = f"; was {close[0]!r} meant?" if close else f": {', '.join(choices)}"
            raise ValueError(f"{name} has no {each!r}{hint}")


# --- TOML -----------------------------------------------------------------------------------------

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = r"(?i)([0-9]+)(?:\.([0-9]+))?\s*(?:([kmgt])i?)?b?"
_SIZES = ("memory", "swap", "output_size", "file_size")


def parse_size(text: str | int) -> int:
    """Turn ``"64M"`` into bytes.

    Raises:
        ValueError: it is no size.
        TypeError: it is neither text nor a whole number.
    """
    if isinstance(text, int):
        return text
    if not isinstance(text, str):
        raise TypeError(f"a size is a whole number, or text such as '64M', not {text!r}")
    match = re.fullmatch(_SIZE, text.strip())
    if match is None:
        raise ValueError(f"a size is a number with K, M, G or T: {text!r}")
    whole, part, unit = match[1], match[2] or "", (match[3] or "").lower()
    bytes_, left = divmod(int(whole + part) * _UNITS[unit], int("1" + "0" * len(part)))
    if left and not unit:
        raise ValueError(f"there are no parts of bytes: {text!r}")
    return bytes_


def _from_toml(content: dict[str, Any], directory: str) -> dict[str, Any]:
    _choose("the policy", content, Policy._fields)
    for name in ("files", "env", "rlimits"):
        if not isinstance(content.get(name, {}), dict):
            raise TypeError(f"{name} must be a table, not {content[name]!r}")
    found = dict(content)
    for name in _SIZES:
        if name in found:
            found[name] = parse_size(found[name])
    if "rlimits" in found:
        found["rlimits"] = {
            name: tuple(both) if isinstance(both, list) else both
            for name, both in found["rlimits"].items()
        }
    if "seccomp_filters" in found:
        names = _strings("seccomp_filters", found["seccomp_filters"])
        found["seccomp_filters"] = [_read(os.path.join(directory, name)) for name in names]
    if "cgroup" in found:
        found["cgroup"] = os.path.join(directory, _text("cgroup", found["cgroup"]))
    if "files" in found:
        found["files"] = {
            path: _entry(path, table, directory) for path, table in found["files"].items()
        }
    return found


def _read(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read()


_KINDS: Mapping[str, tuple[Callable[..., Entry], str, tuple[str, ...]]] = {
    "bind": (Bind, "source", ("writable", "missing_ok")),
    "overlay": (Overlay, "source", ("size", "inodes")),
    "tmpfs": (Tmpfs, "size", ("inodes", "mode")),
    "directory": (Directory, "", ("mode",)),
    "symlink": (Symlink, "target", ()),
    "file": (File, "data", ("mode",)),
    "proc": (Proc, "", ()),
    "devices": (Devices, "", ("shm",)),
}


# What becomes of a text, by what it is.
_TEXTS: Mapping[str, Callable[[str, str], str | bytes]] = {
    "source": os.path.join,
    "target": lambda _, text: text,
    "data": lambda _, text: text.encode(),
}


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, not {value!r}")
    return value


def _entry(path: str, table: Any, directory: str) -> Entry:
    kinds = _KINDS.keys() & table.keys() if isinstance(table, dict) else set()
    if len(kinds) != 1:
        raise ValueError(f"files: {path!r} must be a table with one of {', '.join(_KINDS)}")
    kind = kinds.pop()
    make, main, others = _KINDS[kind]
    _choose(f"files: {path!r}", table, [kind, *others])
    value = table[kind]
    options = {name: table[name] for name in others if name in table}
    for name in ("size", "shm"):
        if name in options:
            options[name] = parse_size(options[name])
    if main == "size" and value is not True:
        value = parse_size(value)
    elif main in _TEXTS:
        value = _TEXTS[main](directory, _text(f"files: {path!r}: {kind}", value))
    if not main or (main == "size" and value is True):
        if value is not True:
            raise ValueError(f"files: {path!r}: {kind} must be true, not {value!r}")
        return make(**options)
    return make(**{main: value}, **options)
