"""The flags of clone, and which of them go together.

Data only: this module knows the kernel's rules, not how to make a call.
"""

from __future__ import annotations

from enum import IntFlag
from typing import NamedTuple


class CloneFlags(IntFlag):
    """The flags of clone(2) and clone3(2), to Linux 7.2.

    Names and values are those of ``<linux/sched.h>`` without ``CLONE_``. ``CloneFlags.X.since``
    is the Linux version that a flag came in, ``CloneFlags.X.summary`` what it does, and
    `ramet.flag_rules` says what it needs and excludes.
    """

    NEWTIME = 0x0000_0080
    VM = 0x0000_0100
    FS = 0x0000_0200
    FILES = 0x0000_0400
    SIGHAND = 0x0000_0800
    PIDFD = 0x0000_1000
    PTRACE = 0x0000_2000
    VFORK = 0x0000_4000
    PARENT = 0x0000_8000
    THREAD = 0x0001_0000
    NEWNS = 0x0002_0000
    SYSVSEM = 0x0004_0000
    SETTLS = 0x0008_0000
    PARENT_SETTID = 0x0010_0000
    CHILD_CLEARTID = 0x0020_0000
    DETACHED = 0x0040_0000
    UNTRACED = 0x0080_0000
    CHILD_SETTID = 0x0100_0000
    NEWCGROUP = 0x0200_0000
    NEWUTS = 0x0400_0000
    NEWIPC = 0x0800_0000
    NEWUSER = 0x1000_0000
    NEWPID = 0x2000_0000
    NEWNET = 0x4000_0000
    IO = 0x8000_0000
    CLEAR_SIGHAND = 1 << 32
    INTO_CGROUP = 1 << 33
    AUTOREAP = 1 << 34
    NNP = 1 << 35
    PIDFD_AUTOKILL = 1 << 36
    EMPTY_MNTNS = 1 << 37

    @property
    def since(self) -> str:
        """The Linux version that this flag came in, as ``"5.5"``.

        Raises:
            ValueError: this is not one flag but several, or none.
        """
        return self._fact.since

    @property
    def summary(self) -> str:
        """What this flag does, in a sentence.

        Raises:
            ValueError: this is not one flag but several, or none.
        """
        return self._fact.summary

    @property
    def _fact(self) -> Fact:
        try:
            return _FACTS[self]
        except KeyError:
            raise ValueError(f"{spell(self)} is not a single flag") from None


class Fact(NamedTuple):
    """What is known of one flag."""

    since: str
    summary: str


# Versions from clone(2) and, from 7.1 on, from the commits that brought the flags.
_FACTS = {
    CloneFlags.NEWTIME: Fact("5.6", "a new time namespace; clone3 only"),
    CloneFlags.VM: Fact("1.0", "share the memory; without it the child has a copy"),
    CloneFlags.FS: Fact("1.0", "share root, working directory and umask"),
    CloneFlags.FILES: Fact("1.0", "share the table of file descriptors"),
    CloneFlags.SIGHAND: Fact("1.0", "share the table of signal handlers"),
    CloneFlags.PIDFD: Fact("5.2", "give the parent a pidfd of the child"),
    CloneFlags.PTRACE: Fact("2.2", "trace the child too, if the caller is traced"),
    CloneFlags.VFORK: Fact("2.2", "suspend the caller until the child execs or exits"),
    CloneFlags.PARENT: Fact("2.3.12", "the child's parent is the caller's parent"),
    CloneFlags.THREAD: Fact("2.4.0", "a thread of the caller's process"),
    CloneFlags.NEWNS: Fact("2.4.19", "a new mount namespace"),
    CloneFlags.SYSVSEM: Fact("2.5.10", "share the list of System V semaphore undo values"),
    CloneFlags.SETTLS: Fact("2.5.32", "set the child's thread pointer"),
    CloneFlags.PARENT_SETTID: Fact("2.5.49", "store the thread id in the parent's memory"),
    CloneFlags.CHILD_CLEARTID: Fact(
        "2.5.49", "clear a word in the child's memory at its end, and wake its futex"
    ),
    CloneFlags.DETACHED: Fact("2.5.32", "nothing, since 2.6.2; refused by clone3"),
    CloneFlags.UNTRACED: Fact("2.5.46", "a tracer may not force PTRACE on the child"),
    CloneFlags.CHILD_SETTID: Fact("2.5.49", "store the thread id in the child's memory"),
    CloneFlags.NEWCGROUP: Fact("4.6", "a new cgroup namespace"),
    CloneFlags.NEWUTS: Fact("2.6.19", "a new namespace of host and domain name"),
    CloneFlags.NEWIPC: Fact("2.6.19", "a new namespace of System V IPC and message queues"),
    CloneFlags.NEWUSER: Fact("2.6.23", "a new user namespace; unprivileged since 3.8"),
    CloneFlags.NEWPID: Fact("2.6.24", "a new pid namespace, the child its init"),
    CloneFlags.NEWNET: Fact("2.6.24", "a new network namespace"),
    CloneFlags.IO: Fact("2.6.25", "share the I/O context"),
    CloneFlags.CLEAR_SIGHAND: Fact("5.5", "signals that have a handler get the default action"),
    CloneFlags.INTO_CGROUP: Fact("5.7", "start in another cgroup v2 than the caller's"),
    CloneFlags.AUTOREAP: Fact("7.1", "the child leaves no zombie and no signal is sent"),
    CloneFlags.NNP: Fact("7.1", "set no_new_privs for the child"),
    CloneFlags.PIDFD_AUTOKILL: Fact("7.1", "kill the child when its birth pidfd is closed"),
    CloneFlags.EMPTY_MNTNS: Fact("7.1", "a new mount namespace with an empty root alone"),
}

# The low byte of clone's flags is the exit signal (CSIGNAL), which hides NEWTIME.
CSIGNAL = 0xFF
CLONE3_ONLY = CloneFlags.NEWTIME | sum(flag for flag in CloneFlags if flag > 0xFFFF_FFFF)
NAMESPACES = (
    CloneFlags.NEWTIME
    | CloneFlags.NEWNS
    | CloneFlags.NEWCGROUP
    | CloneFlags.NEWUTS
    | CloneFlags.NEWIPC
    | CloneFlags.NEWUSER
    | CloneFlags.NEWPID
    | CloneFlags.NEWNET
    | CloneFlags.EMPTY_MNTNS
)


class Rule(NamedTuple):
    """A combination that is refused: all of `having`, with none of `lacking`.

    Attributes:
        having: the flags that together break the rule.
        because: the reason, as a sentence.
        lacking: the rule is kept if any of these is there too. 0: the flags exclude each other.
        exit_signal: the rule is broken only if an exit signal is asked for.
        calls: the system calls that refuse it.
        only_ramet: the kernel here may accept it; the reason says why ramet does not.
    """

    having: CloneFlags
    because: str
    lacking: CloneFlags = CloneFlags(0)
    exit_signal: bool = False
    calls: tuple[str, ...] = ("clone", "clone3")
    only_ramet: bool = False

    def broken_by(self, flags: int, exit_signal: int, call: str) -> bool:
        """Whether a call with these flags and this exit signal is what the rule refuses."""
        return (
            flags & self.having == self.having
            and not flags & self.lacking
            and (exit_signal != 0 or not self.exit_signal)
            and call in self.calls
        )

    def __str__(self) -> str:
        """The rule in words: ``CLONE_THREAD without CLONE_SIGHAND: a thread ...``."""
        what = spell(self.having).replace("|", " with ")
        if self.lacking:
            what += f" without {spell(self.lacking)}"
        if self.exit_signal:
            what += " with an exit signal"
        return f"{what}: {self.because}"


_F = CloneFlags
_CLONE3 = ("clone3",)

# In the order of copy_process and clone3_args_valid (kernel/fork.c) and copy_namespaces
# (kernel/nsproxy.c); the sentences are those of clone(2), ERRORS, where it has one.
RULES = (
    Rule(_F.THREAD, "threads of a process share its signal handlers", lacking=_F.SIGHAND),
    Rule(_F.SIGHAND, "handlers are addresses in the memory that must be shared", lacking=_F.VM),
    Rule(_F.SIGHAND | _F.CLEAR_SIGHAND, "handlers are either shared or reset", calls=_CLONE3),
    Rule(_F.FS | _F.NEWNS, "root and working directory lie in the mount namespace"),
    Rule(_F.FS | _F.EMPTY_MNTNS, "root and working directory lie in the mount namespace"),
    Rule(_F.FS | _F.NEWUSER, "a shared root would lend the new user namespace's rights"),
    Rule(_F.THREAD | _F.NEWUSER, "threads of a process share its user namespace"),
    Rule(_F.THREAD | _F.NEWPID, "threads of a process share its pid namespace"),
    Rule(_F.NEWIPC | _F.SYSVSEM, "semaphores of two ipc namespaces cannot be undone together"),
    Rule(
        _F.NEWTIME | _F.VM,
        "the clocks are part of the memory that would be shared: the kernel refuses this, or "
        "leaves the child in the old time namespace until it execs",
        only_ramet=True,
    ),
    Rule(_F.DETACHED, "clone3 refuses it, and clone has ignored it since 2.6.2", calls=_CLONE3),
    Rule(_F.PIDFD | _F.DETACHED, "clone refuses the two together", calls=("clone",)),
    Rule(_F.PIDFD | _F.PARENT_SETTID, "clone stores both in ptid", calls=("clone",)),
    Rule(_F.THREAD, "a thread's end is not signalled to a parent", exit_signal=True, calls=_CLONE3),
    Rule(
        _F.PARENT,
        "the exit signal is then the one that the caller was started with",
        exit_signal=True,
        calls=_CLONE3,
    ),
    Rule(_F.AUTOREAP | _F.THREAD, "threads are never waited for"),
    Rule(_F.AUTOREAP | _F.PARENT, "only a child of the caller can be reaped for it"),
    Rule(_F.AUTOREAP, "nobody is told of the end", exit_signal=True),
    Rule(_F.NNP | _F.THREAD, "no_new_privs is set for a new process"),
    Rule(_F.PIDFD_AUTOKILL, "it is that pidfd whose closing kills", lacking=_F.PIDFD),
    Rule(_F.PIDFD_AUTOKILL, "nobody would reap the killed child", lacking=_F.AUTOREAP),
)


def flag_rules(flag: CloneFlags) -> tuple[str, ...]:
    """Say what a flag needs and excludes.

    Args:
        flag: one flag, or several.

    Returns:
        The rules that name any of the flags, as sentences.
    """
    return tuple(str(rule) for rule in RULES if (rule.having | rule.lacking) & flag)


def check_flags(flags: int, exit_signal: int, call: str) -> None:
    """Refuse what the kernel would refuse.

    Args:
        flags: flags without the exit signal.
        exit_signal: a signal's number, or 0.
        call: ``"clone"`` or ``"clone3"``.

    Raises:
        ValueError: a rule is broken (the message names flags and rule), or a flag is unknown.
    """
    unknown = flags & ~_ALL
    if unknown:
        raise ValueError(f"unknown clone flags: {unknown:#x}")
    for rule in RULES:
        if rule.broken_by(flags, exit_signal, call):
            raise ValueError(str(rule))


_ALL = int(sum(CloneFlags))


def spell(flags: int) -> str:
    """Spell flags as C does.

    Args:
        flags: any integer; bits without a name are given in hexadecimal.

    Returns:
        For example ``"CLONE_VM|CLONE_VFORK"``, or ``"0"``.
    """
    names = [f"CLONE_{flag.name}" for flag in CloneFlags if flags & flag]
    rest = flags & ~_ALL
    if rest or not names:
        names.append(f"{rest:#x}" if rest else "0")
    return "|".join(names)
