"""``ramet doctor``: what can be had here, tried for real; if not, why, and what can be done."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from errno import ENOENT
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ramet import _native
from ramet._cli._errors import reason
from ramet._cli._progress import Progress
from ramet._cli._words import Option, Page, put, read_options
from ramet._clone import clone
from ramet._flags import CloneFlags
from ramet._probe import probe
from ramet._program import Program
from ramet.sandbox import _cgroup, _landlock, _seccomp, _tree
from ramet.sandbox._root import Bind, Devices, Entry, Overlay, Proc, Tmpfs
from ramet.sandbox._sandbox import Sandbox

if TYPE_CHECKING:
    from ramet._child import Child

_DESCRIPTION = """\
Find out what this kernel, this user and this container allow, by trying it; for what they do not,
why, and what an administrator can do. The exit status is 0 if a sandbox with all its protections
can be had, else 1."""
PAGE = Page(
    "ramet doctor [options]",
    _DESCRIPTION,
    {"options": (Option("--json", "", put("json"), "write it as JSON"),)},
)
_F = CloneFlags
_NEWEST = [flag for flag in CloneFlags if flag > CloneFlags.INTO_CGROUP]


class Check(NamedTuple):
    """What was found out about one thing.

    Attributes:
        name: what it is.
        ok: whether it can be had.
        detail: how, or why not.
        advice: what can be done about it.
        needed: there is no sandbox without it.
    """

    name: str
    ok: bool
    detail: str = ""
    advice: str = ""
    needed: bool = False


# --- what is said of this machine -----------------------------------------------------------------


def _facts() -> dict[str, str]:
    status = _tree.status_of("self")
    return {
        "kernel": f"{platform.release()}, {platform.machine()}",
        "python": f"{platform.python_version()}, {sys.executable}",
        "user": f"{os.geteuid()}, capabilities {int(status.get('CapEff', '0'), 16):#x}",
        "confined": ", ".join(_confinement(status)) or "not that we know of",
    }


def _confinement(status: dict[str, str]) -> Iterator[str]:
    """Say by what this process itself is confined."""
    if status.get("Seccomp", "0") != "0":
        yield "by a seccomp filter"
    if status.get("NoNewPrivs", "0") != "0":
        yield "by no_new_privs"
    label = _read("/proc/self/attr/current").strip("\0\n")
    if label and label != "unconfined":
        yield f"by the label {label!r}"
    if (inside := len(status.get("NSpid", "0").split())) > 1:
        yield f"in {inside} nested pid namespaces"
    with open("/proc/self/uid_map") as file:
        if file.read().split() != ["0", "0", str((1 << 32) - 1)]:
            yield "in a user namespace"
    for path in ("/run/.containerenv", "/.dockerenv"):
        if os.path.exists(path):
            yield f"in a container, as {path} tells"


def _read(path: str) -> str:
    with suppress(OSError), open(path) as file:
        return file.read()
    return ""


# --- clone and pidfds -----------------------------------------------------------------------------


def _check_clone() -> Iterator[Check]:
    found = probe()
    yield Check(
        "clone3",
        found.clone3,
        "" if found.clone3 else "it is filtered, or this kernel is older than 5.3; clone is used",
        "" if found.clone3 else "a newer container runtime lets it through",
    )
    for name, what in (("set_tid", "choose process ids"), ("cgroup", "start in a cgroup")):
        yield Check(f"clone3: {what}", name in found.fields)
    for flag in _NEWEST:
        fault = found.refused.get(flag, "")
        late = f"it needs Linux {flag.since}" if fault in {"EINVAL", "ENOSYS"} else fault
        yield Check(f"CLONE_{flag.name}", not fault, late)


def _check_pidfd() -> Iterator[Check]:
    with cast("Child", clone(_native.nothing, None, _F.VM | _F.VFORK)) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED)  # as somebody else may
        try:
            child.wait()
            fault = ""
        except ChildProcessError:
            fault = "it needs Linux 6.15 (PIDFD_GET_INFO)"
    yield Check("pidfd: the exit status of a child that was reaped", not fault, fault)
    visible = _tree.is_visible()
    yield Check(
        "/proc: children of processes",
        visible,
        "" if visible else "this kernel was built without CONFIG_PROC_CHILDREN, or /proc is hidden",
        "" if visible else "limits for all of a sandbox then need a cgroup",
    )


# --- namespaces -----------------------------------------------------------------------------------

# What may forbid user namespaces: a file, the value that does, and what can be done.
_GATES = (
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "sysctl kernel.unprivileged_userns_clone=1",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that has "
        "'userns,' for this interpreter",
    ),
)
_NAMESPACES = {
    "mount": _F.NEWNS,
    "pid": _F.NEWPID,
    "network": _F.NEWNET,
    "ipc": _F.NEWIPC,
    "uts": _F.NEWUTS,
    "cgroup": _F.NEWCGROUP,
}
_LIMIT_OF = {"mount": "mnt", "network": "net"}


def _check_namespaces() -> Iterator[Check]:
    fault = _start(_F.NEWUSER)
    gates = [(path, advice) for path, bad, advice in _GATES if _read(path).strip() == bad]
    if not fault and os.geteuid() == 0:  # they are for others
        gates = []
    what = "forbids it" if fault else "may limit what can be done in them"
    detail = "; ".join([fault, *(f"{path} {what}" for path, _ in gates)]).strip("; ")
    advice = "; ".join(advice for _, advice in gates)
    if fault and not gates:
        advice = (
            "run it outside of a chroot; a container has to allow it: for Docker and Podman "
            "--security-opt seccomp=PROFILE with clone and unshare allowed"
        )
    most = _read("/proc/sys/user/max_user_namespaces").strip()
    yield Check("user namespaces", not fault, detail or f"up to {most}", advice, needed=True)
    for name, flag in _NAMESPACES.items():
        fault = _start(_F.NEWUSER | flag)
        path = f"/proc/sys/user/max_{_LIMIT_OF.get(name, name)}_namespaces"
        limited = fault and _read(path).strip() == "0"
        yield Check(f"{name} namespaces", not fault, fault, f"write a number to {path}" if limited
                    else "", needed=True)  # fmt: skip


def _start(flags: int) -> str:
    """Start a child that just ends; what is wrong with that."""
    program = Program()
    program.exit(0)
    try:
        with program.start(flags=flags) as child:
            child.wait()
    except OSError as error:
        return reason(error)
    return ""


# --- the parts of a sandbox -----------------------------------------------------------------------


def _try(files: dict[str, Entry], **policy: Any) -> str:
    """Make a sandbox with just this in it, and no program; what is wrong with that."""
    bare: dict[str, Any] = {"seccomp": False, "landlock": False, "network": "host"}
    shared = {"share": ("ipc", "uts", "cgroup")}
    try:
        verdict = Sandbox(files=files, **{**bare, **shared, **policy}).run(["/nothing"])
    except (RuntimeError, OSError, ValueError) as error:
        return reason(error)
    return "" if verdict.errno == ENOENT else verdict.error or verdict.reason


_PARTS: dict[str, tuple[dict[str, Entry], str]] = {
    "a root directory of its own": ({}, ""),
    "binds": ({"/usr": Bind("/usr")}, ""),
    "tmpfs": ({"/tmp": Tmpfs()}, ""),  # noqa: S108 - that of the sandbox
    "/dev": ({"/dev": Devices()}, ""),
    "/proc": (
        {"/proc": Proc()},
        "where a container covers parts of /proc the kernel allows no other one: for Docker "
        "--security-opt systempaths=unconfined, for Podman --security-opt unmask=ALL",
    ),
    "overlays": ({"/usr": Overlay("/usr")}, "they need Linux 5.11, with overlayfs"),
}
_EXTRA = frozenset(("overlays",))


def _check_files() -> Iterator[Check]:
    for name, (files, advice) in _PARTS.items():
        fault = _try(files)
        yield Check(name, not fault, fault, advice if fault else "", needed=name not in _EXTRA)


def _check_seccomp() -> Iterator[Check]:
    try:
        _seccomp.libseccomp()
    except RuntimeError as error:
        advice = "install it (Debian: libseccomp2)"
        yield Check("libseccomp", False, reason(error), advice, needed=True)
        return
    yield Check("libseccomp", True, needed=True)
    fault = _try({}, seccomp=True)
    yield Check("seccomp filters", not fault, fault, "the kernel needs CONFIG_SECCOMP_FILTER" if
                fault else "", needed=True)  # fmt: skip


def _check_landlock() -> Iterator[Check]:
    version = _landlock.abi()
    fault = f"ABI {version}" if version else "this kernel has none, or it is switched off"
    if version >= _landlock.LOWEST_ABI:
        fault = _try({}, landlock=True)
    advice = f"Linux 5.19 or newer, with landlock in lsm= on its command line (now: {_lsm()})"
    yield Check("Landlock", not fault, fault or f"ABI {version}", advice if fault else "",
                needed=True)  # fmt: skip


def _lsm() -> str:
    return _read("/sys/kernel/security/lsm") or "unknown"


def _check_limits() -> Iterator[Check]:
    advice = (
        "systemd-run --user --scope -p Delegate=yes COMMAND; or an administrator makes a group, "
        "writes '+memory +pids +cpu' to cgroup.subtree_control, and gives directory, cgroup.procs "
        "and cgroup.subtree_control to you, and moves you to a group in it"
    )
    for line in _read("/proc/self/cgroup").splitlines():
        if "memory" in line.split(":")[1].split(","):
            advice = (
                "cgroup v1 has the controllers here: boot with "
                "systemd.unified_cgroup_hierarchy=1, or cgroup_no_v1=all"
            )
    without = {
        "memory": "watched from outside, if it is optional",
        "pids": "done by RLIMIT_NPROC",
        "cpu": "not there",
    }
    for controller, instead in without.items():
        parent, fault = _cgroup.find_parent([controller], None)
        yield Check(f"cgroup: {controller}", parent is not None, parent or f"{fault}; without it "
                    f"the limit is {instead}", "" if parent else advice)  # fmt: skip


def _check_whole() -> Iterator[Check]:
    try:
        verdict = Sandbox(system=True).run(["true"])
    except (RuntimeError, OSError) as error:
        yield Check("ramet run -- true", False, reason(error), needed=True)
        return
    made = verdict.ok or verdict.errno == ENOENT  # there is no such program, but a sandbox
    detail = verdict.error or f"{verdict.reason} {verdict.shell_status}"
    if made:
        detail = f"in {verdict.wall_time * 1000:.1f} ms"
    yield Check("ramet run -- true", made, detail, needed=True)


# --- all of it ------------------------------------------------------------------------------------

_GROUPS: dict[str, tuple[Callable[[], Iterator[Check]], ...]] = {
    "starting": (_check_clone, _check_pidfd),
    "namespaces, as ramet uses them: in a user namespace": (_check_namespaces,),
    "files of a sandbox": (_check_files,),
    "confinement": (_check_seccomp, _check_landlock),
    "limits for all of a sandbox, by cgroup v2": (_check_limits,),
    "a sandbox with all its protections": (_check_whole,),
}


def main(words: Sequence[str]) -> int:
    """Find it all out.

    Args:
        words: the command line behind ``ramet doctor``.

    Returns:
        0 if a sandbox can be had, else 1.
    """
    options = read_options(PAGE, words, {"json": False})
    found: dict[str, list[Check]] = {}
    with Progress(len(_GROUPS)) as progress:
        for title, checks in _GROUPS.items():
            found[title] = [check for each in checks for check in _guarded(each)]
            progress.step()
    healthy = all(check.ok for check in found["a sandbox with all its protections"])
    sys.stdout.write(_as_json(healthy, found) if options["json"] else _as_text(healthy, found))
    return 0 if healthy else 1


def _guarded(checks: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Go through checks; what they fall over is one, too."""
    try:
        yield from checks()
    except (RuntimeError, OSError, ValueError) as error:
        yield Check("to find out more", False, reason(error))


def _as_json(healthy: bool, found: dict[str, list[Check]]) -> str:
    import json  # noqa: PLC0415 - here only

    groups = {title: [check._asdict() for check in checks] for title, checks in found.items()}
    content = {"sandbox": healthy, "facts": _facts(), "checks": groups}
    return f"{json.dumps(content, indent=2)}\n"


def _as_text(healthy: bool, found: dict[str, list[Check]]) -> str:
    lines = [f"{name:9} {text}" for name, text in _facts().items()]
    for title, checks in found.items():
        lines += ["", title]
        said = ""
        for check in checks:
            mark = "yes" if check.ok else ("NO" if check.needed else "no")
            lines.append(f"  {mark:4} {check.name}{': ' if check.detail else ''}{check.detail}")
            if check.advice not in {"", said}:
                said = check.advice
                lines.append(f"       -> {check.advice}")
    can = "can" if healthy else "cannot"
    return "\n".join([*lines, "", f"A sandbox with all its protections {can} be had here.", ""])
