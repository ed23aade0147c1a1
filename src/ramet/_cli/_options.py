"""The options that make a policy: what they are called, and what each changes in it.

Names are those of bwrap(1) and unshare(1) where these have the same; all else is called as the
field of the policy is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from ramet import _names
from ramet._cli._errors import CommandError
from ramet._cli._words import Change, Line, Option, put
from ramet.sandbox._policy import parse_size
from ramet.sandbox._root import (
    Bind,
    Devices,
    Directory,
    File,
    Overlay,
    Proc,
    Symlink,
    Tmpfs,
    normalize,
)
from ramet.sandbox._sandbox import Sandbox


class Draft:
    """A policy while the options change it, in their order.

    Attributes:
        fields: the arguments of the policy.
        next: what was said about the next entry of the file system.
        own: what the options say that are not of the policy, but of the command.
    """

    def __init__(self, policy: Sandbox | None) -> None:
        self.fields = (policy or Sandbox()).fields()
        self.fields["files"] = {_place(path): entry for path, entry in self.fields["files"].items()}
        self.next: dict[str, Any] = {}
        self.own: dict[str, Any] = {}
        if policy is None:
            self.fields["system"] = None  # unless --python is given

    def take(self, *names: str) -> dict[str, Any]:
        """Take what was said about the next entry."""
        said, self.next = self.next, {}
        if unfit := said.keys() - set(names):
            raise CommandError(f"{_SAID_BY[min(unfit)]} is not for this")
        return said

    def finish(self) -> Sandbox:
        """Make the policy."""
        for name in self.next:
            raise CommandError(f"{_SAID_BY[name]} must be followed by the option that it is for")
        if self.fields["system"] is None:
            self.fields["system"] = not self.fields["python"]
        return Sandbox(**self.fields)


_SAID_BY = {
    "size": "--size",
    "inodes": "--inodes",
    "mode": "--perms",
    "source": "--overlay-src",
}
_POLICY = "--policy"


# --- kinds of changes -----------------------------------------------------------------------------


def _place(path: str) -> str:
    return f"/{normalize(path)}"


def _set(field: str, value_of: Callable[[str], object] = str) -> Change:
    def change(draft: Draft, word: str) -> None:
        draft.fields[field] = value_of(word)

    return change


def _fix(**fields: object) -> Change:
    return lambda draft: draft.fields.update(fields)


def own(name: str, value_of: Callable[[str], object] | None = None) -> Change:
    """Make the change of an option of the command itself."""
    change = put(name, value_of)
    return lambda draft, *words: change(draft.own, *words)


def _accept(_draft: Draft, *_words: str) -> None:
    """Do nothing: it is always so."""


def _list(word: str) -> set[str]:
    return {name.strip() for name in word.split(",") if name.strip()}


def _add(field: str, names_of: Callable[[str], Iterable[str]] = _list) -> Change:
    def change(draft: Draft, word: str) -> None:
        draft.fields[field] = {*draft.fields[field], *names_of(word)}

    return change


def _share(name: str, shared: bool) -> Change:
    def change(draft: Draft) -> None:
        names = set(draft.fields["share"])
        draft.fields["share"] = names | {name} if shared else names - {name}

    return change


def _say(name: str, value_of: Callable[[str], object]) -> Change:
    def change(draft: Draft, word: str) -> None:
        draft.next[name] = value_of(word)

    return change


def _entry(make: Callable[..., object], *said: str) -> Change:
    """Put an entry at the path that is the last word; those before are its arguments."""

    def change(draft: Draft, *words: str) -> None:
        made = make(*words[:-1], **draft.take(*said))
        draft.fields["files"][_place(words[-1])] = made

    return change


# --- single changes -------------------------------------------------------------------------------


def _bind(writable: bool, missing_ok: bool) -> Callable[[str], object]:
    return lambda source: Bind(source, writable, missing_ok)


def _overlay(**said: Any) -> Overlay:
    if "source" not in said:
        raise CommandError("--overlay-src must come before it")
    return Overlay(**said)


def _devices(size: int | None = None) -> Devices:
    return Devices() if size is None else Devices(shm=size)


def _text(text: str, **said: Any) -> File:
    return File(os.fsencode(text), **said)


def _file(number: str, **said: Any) -> File:
    return File(_read(number), **said)


def _read(number: str) -> bytes:
    """Read all that there is from a descriptor."""
    with open(int(number), "rb") as file:
        return file.read()


def _filter(draft: Draft, number: str) -> None:
    draft.fields["seccomp_filters"] = (*draft.fields["seccomp_filters"], _read(number))


def _setenv(draft: Draft, name: str, value: str) -> None:
    draft.fields["env"][name] = value


def _unsetenv(draft: Draft, name: str) -> None:
    draft.fields["env"].pop(name, None)


def _clearenv(draft: Draft) -> None:
    draft.fields["env"] = {}


def _capabilities(word: str) -> set[str]:
    if word.upper() == "ALL":
        return set(_names.CAPABILITIES)
    return {name.lower().removeprefix("cap_") for name in _list(word)}


def _cap_drop(draft: Draft, word: str) -> None:
    dropped = _capabilities(word)
    kept = [name for name in draft.fields["capabilities"] if not _capabilities(name) <= dropped]
    draft.fields["capabilities"] = kept


def _map_ids(field: str) -> Change:
    def change(draft: Draft, word: str) -> None:
        if "," in word:  # as unshare had it before util-linux 2.39
            outside, inside, count = map(int, word.split(","))
        else:
            inside, outside, count = map(int, word.split(":"))
        before = draft.fields[field]
        lines = () if before is None or isinstance(before, int) else before
        draft.fields[field] = (*lines, (inside, outside, count))

    return change


def _map_current(draft: Draft) -> None:
    draft.fields.update(uid=os.geteuid(), gid=os.getegid())


def _rlimit(draft: Draft, word: str) -> None:
    name, equals, text = word.partition("=")
    if not equals:
        raise CommandError("it is NAME=LIMIT, or NAME=SOFT:HARD")
    limits = [-1 if each == "unlimited" else parse_size(each) for each in text.split(":")]
    draft.fields["rlimits"][name.lower()] = limits[0] if len(limits) == 1 else tuple(limits)


def _require(draft: Draft, word: str) -> None:
    draft.fields["require"] = {*(draft.fields["require"] or ()), *_list(word)}
    draft.fields["optional"] = ()


def _optional(draft: Draft, word: str) -> None:
    if draft.fields["require"] is not None:
        draft.fields["require"] = set(draft.fields["require"]) - _list(word)
    else:
        draft.fields["optional"] = {*draft.fields["optional"], *_list(word)}


def _octal(word: str) -> int:
    return int(word, 8)


# --- the options ----------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[Option, ...]] = {
    "presets: what there is to begin with": (
        Option(_POLICY, "FILE", _accept, "a policy in TOML, which all other options change"),
        Option(
            "--system",
            "",
            _fix(system=True),
            "the system's programs and libraries, read-only, with /proc, /dev and /tmp; the"
            " default, unless there is a policy or --python",
        ),
        Option("--no-system", "", _fix(system=False), "nothing of that"),
        Option(
            "--python",
            "",
            _fix(python=True),
            "just this Python, its packages, and what they need, in the place of --system; both"
            " may be given",
        ),
    ),
    "files: each takes the place of what was at the same path": (
        Option(
            "--ro-bind",
            "SRC DEST",
            _entry(_bind(False, False)),
            "a file or directory of ours, read-only",
        ),
        Option(
            "--ro-bind-try", "SRC DEST", _entry(_bind(False, True)), "the same, if there is one"
        ),
        Option(
            "--bind",
            "SRC DEST",
            _entry(_bind(True, False)),
            "a file or directory of ours that can be written to",
        ),
        Option("--bind-try", "SRC DEST", _entry(_bind(True, True)), "the same, if there is one"),
        Option(
            "--overlay-src",
            "SRC",
            _say("source", str),
            "the directory of ours for the next --tmp-overlay",
        ),
        Option(
            "--tmp-overlay",
            "DEST",
            _entry(_overlay, "source", "size", "inodes"),
            "that directory, as if it could be written to: changes are in memory, and thrown away",
        ),
        Option(
            "--tmpfs",
            "DEST",
            _entry(Tmpfs, "size", "inodes", "mode"),
            "an empty directory in memory that can be written to, of 64M",
        ),
        Option("--dir", "DEST", _entry(Directory, "mode"), "an empty directory"),
        Option("--symlink", "TARGET DEST", _entry(Symlink), "a symbolic link"),
        Option(
            "--file --bind-data --ro-bind-data",
            "FD DEST",
            _entry(_file, "mode"),
            "a file with what can be read from a descriptor; it cannot be written to",
        ),
        Option("--data", "TEXT DEST", _entry(_text, "mode"), "a file with a text"),
        Option("--proc", "DEST", _entry(Proc), "the processes of the sandbox"),
        Option(
            "--dev",
            "DEST",
            _entry(_devices, "size"),
            "null, zero, random, terminals, and shared memory",
        ),
        Option(
            "--size",
            "SIZE",
            _say("size", parse_size),
            "how much the next --tmpfs, --tmp-overlay or --dev may hold",
        ),
        Option(
            "--inodes",
            "N",
            _say("inodes", int),
            "how many files the next --tmpfs or --tmp-overlay may hold",
        ),
        Option(
            "--perms",
            "OCTAL",
            _say("mode", _octal),
            "permissions of the next --tmpfs, --dir, --file or --data",
        ),
    ),
    "what the program begins with": (
        Option("--chdir --wd", "DIR", _set("cwd"), "its working directory; / by default"),
        Option("--setenv", "VAR VALUE", _setenv, "a variable of its environment, which is empty"),
        Option("--unsetenv", "VAR", _unsetenv, "take a variable of the policy out again"),
        Option("--clearenv", "", _clearenv, "take all of them out"),
    ),
    "who it is": (
        Option(
            "--uid --setuid --map-user",
            "UID",
            _set("uid", int),
            "its user id inside, 1000 by default; outside it is you, or nobody if you are root",
        ),
        Option("--gid --setgid --map-group", "GID", _set("gid", int), "its group id"),
        Option("--map-root-user", "", _fix(uid=0, gid=0), "both are 0"),
        Option("--map-current-user", "", _map_current, "both are your own"),
        Option(
            "--map-users", "INNER:OUTER:N", _map_ids("uid_map"), "map user ids; can be repeated"
        ),
        Option("--map-groups", "INNER:OUTER:N", _map_ids("gid_map"), "the same for group ids"),
        Option("--hostname", "NAME", _set("hostname"), "the host name"),
        Option(
            "--cap-add",
            "CAP",
            _add("capabilities", _capabilities),
            "a capability, or ALL, in the sandbox's own namespaces; there are none by default",
        ),
        Option("--cap-drop", "CAP", _cap_drop, "take one of the policy, or ALL, out again"),
    ),
    "what it shares with this machine: nothing by default": (
        Option("--share-net", "", _fix(network="host"), "the network"),
        Option("--share-ipc", "", _share("ipc", True), "System V IPC and message queues"),
        Option("--share-uts", "", _share("uts", True), "the host name"),
        Option("--share-cgroup", "", _share("cgroup", True), "the view of cgroups"),
        Option(
            "--unshare-all", "", _fix(network="none", share=()), "nothing, whatever the policy says"
        ),
        Option("--unshare-net", "", _fix(network="none"), "not the network"),
        Option("--unshare-ipc", "", _share("ipc", False), "not IPC"),
        Option("--unshare-uts", "", _share("uts", False), "not the host name"),
        Option(
            "--unshare-cgroup --unshare-cgroup-try",
            "",
            _share("cgroup", False),
            "not the view of cgroups",
        ),
        Option(
            "--unshare-user --unshare-user-try --unshare-pid --unshare-mount --new-session"
            " --die-with-parent",
            "",
            _accept,
            "it is always so; for those who are used to say it",
        ),
    ),
    "system calls and files, as second lines": (
        Option(
            "--allow-syscalls",
            "NAMES",
            _add("allow_syscalls"),
            "allow calls that the default filter denies: names with commas in between",
        ),
        Option("--deny-syscalls", "NAMES", _add("deny_syscalls"), "deny more"),
        Option("--no-seccomp", "", _fix(seccomp=False), "without the default filter"),
        Option(
            "--seccomp --add-seccomp-fd",
            "FD",
            _filter,
            "one more filter, as classic BPF, from a descriptor; can be repeated",
        ),
        Option("--no-landlock", "", _fix(landlock=False), "without Landlock's rules"),
    ),
    "limits: sizes may have K, M, G or T": (
        Option("--memory", "SIZE", _set("memory", parse_size), "memory of all of the sandbox"),
        Option("--swap", "SIZE", _set("swap", parse_size), "swap beyond that; by default none"),
        Option("--processes", "N", _set("processes", int), "processes and threads"),
        Option("--cpu", "N", _set("cpu", float), "processors, such as 0.5"),
        Option(
            "--cpu-time", "SECONDS", _set("cpu_time", float), "processor time of all of the sandbox"
        ),
        Option("--timeout", "SECONDS", _set("wall_time", float), "time from the start on"),
        Option(
            "--output-size",
            "SIZE",
            _set("output_size", parse_size),
            "what --capture keeps; 16M by default",
        ),
        Option("--file-size", "SIZE", _set("file_size", parse_size), "of any file that is written"),
        Option(
            "--rlimit",
            "NAME=LIMIT",
            _rlimit,
            "a limit of each process, such as nofile=64 or stack=8M:16M",
        ),
        Option("--cgroup", "DIR", _set("cgroup"), "where the cgroup is made, if one is needed"),
    ),
    "what may be missing": (
        Option(
            "--optional",
            "NAMES",
            _optional,
            "protections that this system need not have, such as landlock,memory",
        ),
        Option(
            "--require",
            "NAMES",
            _require,
            "those that it must have; all others may be missing. By default it must have all",
        ),
    ),
}


# --- reading them ---------------------------------------------------------------------------------


def drafted(line: Line) -> Draft:
    """Make the draft that a command line asks for: first the policy, then what changes it.

    Raises:
        CommandError: an option does not make sense.
        OSError, TypeError, ValueError: as `Sandbox.load`.
    """
    policies = [words[0] for name, _, words in line.changes if name == _POLICY]
    draft = Draft(Sandbox.load(policies[-1]) if policies else None)
    line.apply(draft)
    return draft
