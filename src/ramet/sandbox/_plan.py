"""Plan: a policy, compiled to flags and a program, with the receipt for it. Starts nothing."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from signal import SIGCHLD
from types import MappingProxyType

from ramet import _names
from ramet._flags import CloneFlags
from ramet._program import Parameter, Program, Result
from ramet._record import Record
from ramet._spawn import RESTORED_SIGNALS, IdMaps, add_closing
from ramet._steps import Environment, capability, env_strings
from ramet.sandbox import _cgroup, _landlock, _seccomp, _tree
from ramet.sandbox._policy import LIMITS, Policy
from ramet.sandbox._root import (
    Checked,
    Devices,
    Proc,
    add_fresh,
    add_root,
    add_sources,
    for_calls,
    writable_paths,
)
from ramet.sandbox._verdict import Protection, ProtectionError

_F = CloneFlags
_ALWAYS = _F.NEWUSER | _F.NEWNS | _F.NEWPID
_NAMESPACES = {
    "network": (_F.NEWNET, "net"),
    "ipc": (_F.NEWIPC, "ipc"),
    "uts": (_F.NEWUTS, "uts"),
    "cgroup_namespace": (_F.NEWCGROUP, "cgroup"),
}
_SHARED_AS = {"cgroup_namespace": "cgroup"}
_NOBODY = 65534
_STANDARD = (0, 1, 2)
_HIGH = 16  # descriptors that the program is not given are copied to numbers from here on
_SIOCSIFFLAGS = 0x8914
_LOOPBACK_UP = b"lo".ljust(16, b"\0") + (0x1 | 0x40).to_bytes(2, "little") + bytes(22)
_INIT = os.path.join(os.path.dirname(os.path.dirname(__file__)), "lib", "ramet-init")


class Limits(Record):
    """How the limits of a sandbox as a whole are enforced.

    Attributes:
        group: where a cgroup is made, None for none.
        settings: what is written to it.
        sampled: protections that hang on what is found in /proc from time to time.
        processes: the limit for those of a user, RLIMIT_NPROC; None for none.
    """

    group: str | None = None
    settings: Mapping[str, str] = MappingProxyType({})
    sampled: frozenset[str] = frozenset()
    processes: int | None = None


class Plan(Record):
    """What a sandbox is made by.

    Attributes:
        program: the program, with parameters for the descriptors (``fd0`` and so on, ``report``,
            ``parent`` and ``gate``) and for the arguments of the first process (``argv``).
        init_args: those that are its own.
        flags: of clone.
        receipt: what is enforced.
        limits: those of all of it.
    """

    program: Program
    init_args: tuple[str, ...]
    flags: int
    receipt: tuple[Protection, ...]
    limits: Limits


# --- which protections there are ------------------------------------------------------------------


class _Receipt:
    """The receipt while it is written: what cannot be had is refused, or noted."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.lines: list[Protection] = []

    def applied(self, name: str, requested: str, how: str) -> None:
        self.lines.append(Protection(name, requested, "applied", how))

    def missing(self, name: str, requested: str, reason: str, instead: str = "") -> None:
        """Note what is missing.

        Raises:
            ProtectionError: it is required.
        """
        if not self._policy.is_optional(name):
            raise ProtectionError(name, f"{reason}; it is required unless it is made optional")
        how = f"{reason}; {instead}" if instead else reason
        self.lines.append(Protection(name, requested, "degraded", how))


def namespace_flags(policy: Policy, receipt: _Receipt) -> int:
    """Choose the namespaces."""
    flags = _ALWAYS
    receipt.applied("namespaces", "user, mount, pid", "clone")
    for name, (flag, file) in _NAMESPACES.items():
        if name == "network":
            shared, asked = policy.network == "host", "none, with the loopback device"
        else:
            shared, asked = _SHARED_AS.get(name, name) in policy.share, "its own"
        if shared:
            continue
        if os.path.exists(f"/proc/self/ns/{file}"):
            flags |= flag
            receipt.applied(name, asked, f"CLONE_{flag.name}")
        else:
            receipt.missing(name, asked, f"this kernel has no {file} namespaces")
    return int(flags)


def _add_seccomp(policy: Policy, receipt: _Receipt) -> tuple[bytes, ...]:
    filters = tuple(policy.seccomp_filters)
    asked = "default" if policy.seccomp else "filters of the user's own"
    if policy.seccomp:
        for word, names in (("with", policy.allow_syscalls), ("without", policy.deny_syscalls)):
            asked += f", {word} {', '.join(sorted(names))}" if names else ""
        try:
            own = _seccomp.filter_program(allow=policy.allow_syscalls, deny=policy.deny_syscalls)
            filters += (own,)
        except RuntimeError as error:
            receipt.missing("seccomp", asked, str(error))
            asked = "filters of the user's own"
    if not filters:
        return ()
    if not _seccomp.is_available():
        receipt.missing("seccomp", asked, "this kernel has no filters of system calls")
        return ()
    receipt.applied("seccomp", asked, f"{len(filters)} filter{'s' if len(filters) > 1 else ''}")
    return filters


def _wants_landlock(policy: Policy, receipt: _Receipt) -> bool:
    if not policy.landlock:
        return False
    version, asked = _landlock.abi(), "files as they are mounted"
    if version >= _landlock.LOWEST_ABI:
        receipt.applied("landlock", asked, f"ABI {version}")
        return True
    receipt.missing(
        "landlock",
        asked,
        f"it needs ABI {_landlock.LOWEST_ABI}, and this kernel has {version or 'none'} (the kernel "
        "parameter lsm= has to name it)",
    )
    return False


def _above(uid: int | None) -> int | None:
    """Say who a user is for the user namespace above ours; the same if ours is the first."""
    with open("/proc/self/uid_map") as file:
        for line in file:
            first, above, count = map(int, line.split())
            if uid is not None and first <= uid < first + count:
                return above + uid - first
    return None


def _is_root_outside(policy: Policy, maps: IdMaps) -> bool:
    """Whether the sandbox's user is the user 0 of the machine, as far as can be seen from here."""
    return _above(maps.outside("uid", policy.uid)) == 0


def _has_capability(policy: Policy, name: str) -> bool:
    return capability(name) in map(capability, policy.capabilities)


def _uncounted(policy: Policy, maps: IdMaps) -> str:
    """Say why RLIMIT_NPROC, which counts the processes of one user, would not hold."""
    if _is_root_outside(policy, maps):
        return "RLIMIT_NPROC does not hold for user 0"
    ids = policy.uid_map if isinstance(policy.uid_map, Sequence) else ((policy.uid, 0, 1),)
    if _has_capability(policy, "setuid") and sum(count for _, _, count in ids) > 1:
        return "RLIMIT_NPROC is of each user, and the program can become several"
    return ""


def plan_limits(policy: Policy, receipt: _Receipt, maps: IdMaps, *, others: int) -> Limits:
    """Choose how the limits are enforced: by a cgroup where that can be made.

    Args:
        policy: the policy.
        receipt: where that is noted.
        maps: whom the sandbox's users are outside.
        others: processes that do not count.
    """
    asked = {
        "memory": policy.memory,
        "swap": None if policy.memory is None else policy.swap or 0,
        "processes": policy.processes,
        "cpu": policy.cpu,
    }
    wanted = {name: value for name, value in asked.items() if value is not None}
    group, reason = None, ""
    if wanted or policy.cgroup is not None or policy.cpu_time is not None:
        controllers = {_cgroup.CONTROLLERS[name] for name in wanted}
        group, reason = _cgroup.find_parent(controllers, policy.cgroup)
    sampled = set()
    processes = None
    most = None if policy.processes is None else policy.processes + others
    if policy.cgroup is not None and group is None:
        raise ProtectionError("cgroup", reason)
    for name, value in wanted.items():
        text = str(value)
        if group is not None:
            receipt.applied(name, text, f"{_cgroup.CONTROLLERS[name]} controller, {group}")
        elif name == "processes":
            if why := _uncounted(policy, maps):
                receipt.missing(name, text, f"{reason}; {why}")
            else:
                processes = most
                receipt.applied(name, text, "RLIMIT_NPROC in a user namespace of its own")
        elif name == "memory" and _tree.is_visible():
            receipt.missing(name, text, reason, _OF_SAMPLES)
            sampled.add(name)
        else:
            receipt.missing(name, text, reason)
    made = _cgroup.settings(policy.memory, policy.swap, most, policy.cpu)
    if policy.cpu_time is not None:
        how = "RLIMIT_CPU for each process"
        if group is not None or _tree.is_visible():
            sampled.add("cpu_time")
            how += f", and for all of them {_OF_TREE if group is None else 'cpu.stat of a cgroup'}"
        receipt.applied("cpu_time", f"{policy.cpu_time} s", how)
    return Limits(group, made if group else {}, frozenset(sampled), processes)


_OF_SAMPLES = (
    "what its processes have is looked at 50 times a second, without files in memory "
    "(memfd_create, shmget) that none has mapped"
)
_OF_TREE = "50 times a second what runs, or was waited for, has used"

# --- the program ----------------------------------------------------------------------------------


def outside_ids(policy: Policy) -> IdMaps:
    """Choose whom the sandbox's user is outside: us, or nobody if we are root."""
    is_root = os.geteuid() == 0
    uid = _NOBODY if is_root else os.geteuid()
    gid = _NOBODY if is_root else os.getegid()
    return IdMaps(
        ((policy.uid, uid, 1),) if policy.uid_map is None else policy.uid_map,
        ((policy.gid, gid, 1),) if policy.gid_map is None else policy.gid_map,
        groups=is_root,
    )


@lru_cache(maxsize=1)
def _last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def add_identity(program: Program, policy: Policy, maps: IdMaps) -> None:
    """Add the steps that take on the ids inside, and keep all capabilities for now."""
    if maps.by_parent:
        program.set_keepcaps()
        if os.geteuid() == 0:
            program.setgroups(())
    program.setresgid(policy.gid)
    program.setresuid(policy.uid)
    if maps.by_parent:
        names = range(_last_capability() + 1)
        program.capset(names, names)


def add_keyring(program: Program) -> None:
    """Add the step that gets a session keyring of its own: who has ours has the keys in it.

    A kernel without keys, or a container that denies this, has none to give.
    """
    program.syscall("keyctl", _JOIN_SESSION_KEYRING, None, tolerate=(errno.ENOSYS, errno.EPERM))


def add_surrounding(program: Program, policy: Policy, flags: int) -> None:
    """Add the steps for what is around the files."""
    add_keyring(program)
    if flags & _F.NEWUTS:
        program.sethostname(policy.hostname)
    if flags & _F.NEWNET:
        socket = program.syscall("socket", _AF_INET, _SOCK_DGRAM | os.O_CLOEXEC, 0)
        program.syscall("ioctl", socket, _SIOCSIFFLAGS, _LOOPBACK_UP)
        program.close(socket)


_AF_INET, _SOCK_DGRAM = 2, 2
_JOIN_SESSION_KEYRING = 1  # KEYCTL_JOIN_SESSION_KEYRING: without a name, a new one


def add_confinement(
    program: Program,
    policy: Policy,
    *,
    scratch: int,
    landlock: bool,
    processes: int | None,
    runnable: Iterable[Result] = (),
) -> None:
    """Add the steps by which privileges are given up; mounts are made before."""
    program.set_no_new_privs()
    rules = None
    if landlock:
        devices = [f"/{path}" for path, each in policy.entries.items() if isinstance(each, Devices)]
        rules = _landlock.add_landlock(
            program,
            scratch,
            writable=writable_paths(policy.entries),
            devices=devices,
            files=runnable,
        )
    limits = policy.limits()
    if processes is not None:
        limits[resource.RLIMIT_NPROC] = processes, processes
    for number, (soft, hard) in limits.items():
        program.setrlimit(number, soft, hard)
    add_capabilities(program, policy.capabilities)
    if rules is not None:
        program.landlock_restrict_self(rules)
        program.close(rules)


def add_capabilities(program: Program, names: Iterable[str]) -> None:
    """Add the steps by which all capabilities but some are given up."""
    kept = {capability(name) for name in names}
    program.drop_bounding(set(range(_last_capability() + 1)) - kept)
    program.capset(kept, kept, kept)
    if kept:
        program.raise_ambient(kept)


class _Choice(Record):
    """What of a policy can be had, and how."""

    flags: int
    maps: IdMaps
    filters: tuple[bytes, ...]
    landlock: bool
    limits: Limits
    receipt: tuple[Protection, ...]


def _choose(policy: Policy, *, others: int) -> _Choice:
    """Find out what of a policy can be had.

    Args:
        policy: the policy.
        others: processes of ours that are there beside those of the program.

    Raises:
        ProtectionError: something that is required cannot be had.
    """
    receipt = _Receipt(policy)
    flags = namespace_flags(policy, receipt)
    maps = outside_ids(policy)
    receipt.applied("files", "what the policy lists", "a root directory of its own, nosuid, nodev")
    kept = ", ".join(sorted(policy.capabilities)) or "none"
    receipt.applied("capabilities", kept, "bounding set, capset, no_new_privs")
    filters = _add_seccomp(policy, receipt)
    landlock = _wants_landlock(policy, receipt)
    limits = plan_limits(policy, receipt, maps, others=others)
    for name, value in policy.limits().items():
        if name != resource.RLIMIT_CPU:
            label = _RLIMIT_NAMES[name]
            receipt.applied(label, str(value[0]), f"RLIMIT_{label.upper()} for each process")
    return _Choice(flags, maps, filters, landlock, limits, tuple(receipt.lines))


class _Start:
    """A program that makes a sandbox and runs ramet-init in it, while it is written."""

    def __init__(
        self,
        policy: Policy,
        choice: _Choice,
        entries: Mapping[str, Checked],
        targets: Iterable[int],
    ) -> None:
        """Begin with what makes the sandbox.

        Args:
            policy: the policy.
            choice: what of it can be had.
            entries: the files.
            targets: the numbers of descriptors that the program has.
        """
        numbers = tuple(targets)
        self.program = program = Program()
        self.policy = policy
        self.report = max(numbers) + 1
        self.parent, self.scratch = self.report + 1, self.report + 2
        self._lowest = max(_HIGH, self.scratch + 1)
        self._sources = {number: self._copy(f"fd{number}") for number in numbers}
        self._sources[self.report] = self._copy("report")
        self._sources[self.parent] = self._copy("parent")
        if choice.maps.by_parent:
            choice.maps.gate = self._copy("gate")
        self.init = program.dup_above(program.open(_INIT, os.O_PATH), self._lowest)
        if choice.landlock:
            program.dup2(self.init, self.scratch)  # so that nothing opened later has this number
        # First what needs no ids: meanwhile we write their maps.
        opened = add_sources(program, entries)
        add_surrounding(program, policy, choice.flags)
        choice.maps.add_steps(program, self._sources[self.parent])
        add_identity(program, policy, choice.maps)
        add_root(program, entries, opened)
        if policy.cwd != "/":
            program.chdir(policy.cwd)

    def _copy(self, name: str) -> Result:
        return self.program.syscall("fcntl", Parameter(name), _F_DUPFD_CLOEXEC, self._lowest)

    def finish(self, filters: Iterable[bytes], *, tells_all: bool) -> tuple[str, ...]:
        """End with what runs ramet-init. Returns the arguments of its own."""
        program = self.program
        for number, source in self._sources.items():
            program.dup2(source, number)
        add_closing(program, self._sources, _CLOSE_RANGE_CLOEXEC)  # at the exec
        # If SIGCHLD were ignored, as it may be here, the first process would not hear of ends.
        program.default_signals((*RESTORED_SIGNALS, SIGCHLD))
        for each in filters:
            program.seccomp(each)
        env = Environment(env_strings(self.policy.env))
        # The first process would ignore a signal that comes before it has blocked it: what has its
        # default action does not end the init of a namespace (sig_task_ignored, kernel/signal.c).
        exec_ = (self.init, "", Parameter("argv"), env, _names.AT_EMPTY_PATH)
        program._add("execveat", exec_, unblocks=False)
        return _INIT_NAME, str(self.report), str(self.parent), str(int(tells_all))


def make_plan(policy: Policy, targets: tuple[int, ...] = ()) -> Plan:
    """Compile a policy, for a program.

    Args:
        policy: the policy.
        targets: the numbers of descriptors that the program has, beside 0, 1 and 2.

    Raises:
        ProtectionError: one that is required cannot be had.
    """
    choice = _choose(policy, others=1)
    start = _Start(policy, choice, policy.entries, (*_STANDARD, *targets))
    add_confinement(
        start.program,
        policy,
        scratch=start.scratch,
        landlock=choice.landlock,
        processes=choice.limits.processes,
        runnable=[start.init],
    )
    args = start.finish(choice.filters, tells_all=False)
    return Plan(start.program, args, choice.flags, choice.receipt, choice.limits)


def make_call_plans(policy: Policy, targets: tuple[int, ...]) -> tuple[Plan, Plan]:
    """Compile a policy, for Python functions in children of a zygote.

    Args:
        policy: the policy.
        targets: the numbers of descriptors that the zygote has, beside 0, 1 and 2.

    Returns:
        The plan for the zygote, which has the sandbox's namespaces and files, and no capabilities
        but one to map user 0, if that is the sandbox's; and that for each child: it gets users,
        processes, mounts and System V's IPC of its own, the files that can change anew, and all
        that confines.

    Raises:
        ProtectionError: one that is required cannot be had.
        ValueError: there is no Python in the sandbox, or no /proc; its user is root outside; or it
            has sys_admin.
    """
    if not policy.python or not isinstance(policy.entries.get("proc"), Proc):
        raise ValueError("Python functions need python=True, and Proc() at /proc")
    if _is_root_outside(policy, outside_ids(policy)):
        raise ValueError("Python functions are not for a user who is root outside: see uid_map")
    if _has_capability(policy, "sys_admin"):
        raise ValueError(
            "Python functions can't have the capability sys_admin: with it they could unmount what "
            "each has of its own, and leave files for others in what lies below"
        )
    choice = _choose(policy, others=0)
    start = _Start(policy, choice, for_calls(policy.entries), (*_STANDARD, *targets))
    start.program.set_no_new_privs()
    # Without it a child may not map user 0 (verify_root_map, kernel/user_namespace.c).
    add_capabilities(start.program, () if policy.uid else ("setfcap",))
    args = start.finish((), tells_all=True)
    holder = Plan(start.program, args, choice.flags, (), Limits())

    program = Program()
    program.setsid()  # or kill(0, ...) would be for the zygote and all of its children
    add_keyring(program)
    for name, text in (
        ("setgroups", "deny"),  # without which an ordinary user may not map groups
        ("uid_map", f"{policy.uid} {policy.uid} 1"),
        ("gid_map", f"{policy.gid} {policy.gid} 1"),
    ):
        program.write_file(f"/proc/self/{name}", text.encode())
    add_fresh(program, policy.entries)
    program.chdir(policy.cwd)
    add_confinement(
        program,
        policy,
        scratch=_SCRATCH,
        landlock=choice.landlock,
        processes=choice.limits.processes,
    )
    # With the file for what becomes of the setup: what is written there is trusted.
    add_closing(program, (*_STANDARD, OUTCOME))
    for each in choice.filters:
        program.seccomp(each)
    own = int(_ALWAYS | (choice.flags & _F.NEWIPC))
    return holder, Plan(program, (), own, choice.receipt, choice.limits)


OUTCOME = 3
"""The descriptor that a function's child has for what becomes of it."""

_SCRATCH = 200  # a descriptor that nobody has
_INIT_NAME = "ramet-init"
_F_DUPFD_CLOEXEC = _names.FCNTL["F_DUPFD_CLOEXEC"]
_CLOSE_RANGE_CLOEXEC = _names.CLOSE_RANGE["CLOSE_RANGE_CLOEXEC"]
_RLIMIT_NAMES = {number: name for name, number in LIMITS.items()}
