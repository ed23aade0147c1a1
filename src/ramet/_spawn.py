"""spawn(): a program file in a new process, with any setup before it execs.

Turns options into the steps of a `Program`, in an order in which each still has the privileges and
descriptors that it needs.
"""

from __future__ import annotations

import errno
import grp
import operator
import os
import pwd
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from os import fspath
from signal import SIGKILL, SIGPIPE, SIGXFSZ
from typing import Any, NamedTuple

from ramet import _native
from ramet._child import Child
from ramet._clone import HasFileno, start_simply
from ramet._deadlines import check_timeout
from ramet._flags import CloneFlags
from ramet._native import Descriptor
from ramet._program import Code, Program, Result, begin, program_flags
from ramet._steps import Env, Path, check_id, env_strings

_F = CloneFlags
_NEWUSER, _NEWTIME, _FILES = int(_F.NEWUSER), int(_F.NEWTIME), int(_F.FILES)

IdMap = int | Sequence[tuple[int, int, int]]
File = int | HasFileno
MOST_FDS = 1 << 31
# Numbers in the child, and the descriptors of ours that they stand for; -1: what is there.
Descriptors = tuple[tuple[int, int], ...]
STANDARD: Descriptors = ((0, -1), (1, -1), (2, -1))
# What Python ignores, and most programs expect not to be ignored.
RESTORED_SIGNALS = (SIGPIPE, SIGXFSZ)


def spawn(
    args: Sequence[Path],
    *,
    executable: Path | None = None,
    env: Env | None = None,
    cwd: Path | int | None = None,
    fds: Mapping[int, File] | None = None,
    flags: int = 0,
    uid_map: IdMap | None = None,
    gid_map: IdMap | None = None,
    user: int | str | None = None,
    group: int | str | None = None,
    extra_groups: Iterable[int | str] | None = None,
    rlimits: Mapping[int, int | tuple[int, int]] | None = None,
    umask: int = -1,
    start_new_session: bool = False,
    process_group: int | None = None,
    restore_signals: bool = True,
    pdeathsig: int | None = None,
    no_new_privs: bool = False,
    cgroup: int | str | os.PathLike[str] | HasFileno | None = None,
    nice: int | None = None,
    affinity: Iterable[int] | None = None,
    scheduler: tuple[int, int] | None = None,
    ioprio: tuple[int, int] | None = None,
    hostname: str | None = None,
    before_exec: Callable[[Program], object] | None = None,
    exit_signal: int | None = None,
    set_tid: Sequence[int] = (),
    timeout: float | None = None,
) -> Child:
    """Run a program file in a new process.

    All setup is done by system calls in the child, in this order: id maps, descriptors, time
    namespace, host name, working directory, umask, signals, session, process group, limits and
    scheduling, groups, group, user, death signal, no_new_privs, what `before_exec` adds; then all
    other descriptors are closed. It costs the same whatever the size of this process, and is safe
    whatever its other threads do. To do it often, put a `Program` together once.

    Args:
        args: the arguments, the program's name first.
        executable: the file to run, if it is not ``args[0]``. Looked for along the PATH of `env` if
            it has no slash.
        env: the environment; by default that of this process.
        cwd: the working directory: a path, or a descriptor of a directory.
        fds: which descriptors the child has, by their numbers in the child: a descriptor of
            ours, or what has a ``fileno()``. 0, 1 and 2 are ours unless they are given. All else is
            closed.
        flags: `CloneFlags`: namespaces, and what the child shares. FILES is not for this.
        uid_map: user ids of a new user namespace: triples of the first id inside, the first
            outside, and how many; or one id, which ours has inside. Sets NEWUSER.
        gid_map: the same for group ids. Where the kernel wants it, setgroups is denied.
        user: a user name or id to change to.
        group: a group name or id to change to.
        extra_groups: names or ids of the supplementary groups.
        rlimits: limits by ``resource.RLIMIT_*``: one number for both, or soft and hard; -1 is none.
        umask: file mode creation mask, -1 leaves it.
        start_new_session: call setsid.
        process_group: call setpgid; 0 makes a new group.
        restore_signals: SIGPIPE and SIGXFSZ, which Python ignores, get their default action.
        pdeathsig: a signal to get when the *thread* that calls this ends. If this process has
            ended before that could be asked for, the program does not run.
        no_new_privs: let no exec give privileges.
        cgroup: the cgroup v2 directory to start in, as of `ramet.clone`.
        nice: the nice value.
        affinity: the processors that it may run on.
        scheduler: policy (``os.SCHED_*``) and priority.
        ioprio: class and level of I/O, as of `Program.ioprio_set`.
        hostname: the host name; needs NEWUTS.
        before_exec: is given the `Program`, to add steps, which come last but for the exec. What
            they open is closed.
        exit_signal: as of `ramet.clone`.
        set_tid: as of `ramet.clone`.
        timeout: seconds that all this may take, as of `Program.start`.

    Returns:
        The child. It runs the program by now.

    Raises:
        ChildError: a step failed; it is a FileNotFoundError, PermissionError and so on as well.
        TimeoutError: it took too long.
        ValueError, TypeError, KeyError: bad arguments (KeyError: no such user or group).
        OSError: the kernel refuses to start the child, or to write its id maps; NEWTIME before
            Linux 6.2.

    Source: clone(2), execve(2), and the man page of each call.
    """
    if isinstance(extra_groups, str):
        raise TypeError("extra_groups must be several names or ids, not one string")
    if umask < -1:
        raise ValueError(f"umask must be -1 or a mask, not {umask}")
    if isinstance(cwd, int) and not 0 <= cwd < MOST_FDS:
        raise ValueError(f"cwd is no descriptor: {cwd}")
    args = check_args(args)
    descriptors = STANDARD if fds is None else tuple({**dict(STANDARD), **_numbers(fds)}.items())
    paths = executables(args[0] if executable is None else executable, env)
    prepared = prepare(
        descriptors,
        cwd=cwd,
        flags=flags,
        uid_map=uid_map,
        gid_map=gid_map,
        uid=None if user is None else user_id(user),
        gid=None if group is None else group_id(group),
        groups=None if extra_groups is None else tuple(group_id(item) for item in extra_groups),
        rlimits=rlimits,
        umask=umask,
        start_new_session=start_new_session,
        process_group=process_group,
        restore_signals=restore_signals,
        pdeathsig=pdeathsig,
        no_new_privs=no_new_privs,
        cgroup=cgroup,
        nice=nice,
        affinity=affinity,
        scheduler=scheduler,
        ioprio=ioprio,
        hostname=hostname,
        before_exec=before_exec,
        exit_signal=exit_signal,
        set_tid=set_tid,
        timeout=timeout,
    )
    return prepared.start(paths, args, env)


class Prepared(NamedTuple):
    """A start that is prepared, but for the program file."""

    program: Program
    flags: int
    suspends: bool  # the child has let go of our memory when its start returns
    simple: bool  # there are flags and nothing else
    exit_signal: int | None
    set_tid: Sequence[int]
    cgroup: int | str | os.PathLike[str] | HasFileno | None
    seconds: float | None
    maps: IdMaps | None  # to be written by this process
    parent: Descriptor | None  # which steps use

    def start(self, paths: Sequence[Path], args: Sequence[Path], env: Env | None) -> Child:
        """Start a program file.

        Args:
            paths: the files to try, one after another.
            args: its arguments.
            env: its environment.
        """
        # As `Program.execvp` and `Program.start` do it, but for one start, in a hurry.
        program, flags, suspends, simple, exit_signal, set_tid, cgroup, seconds, maps, _ = self
        base = program._code or program._compile()
        args = list(map(fspath, args))  # type: ignore[arg-type] # asked once
        strings = None if env is None else env_strings(env)
        structures = _native.with_execs(base.structures, paths, args, strings)
        if simple:
            address = _native.bytes_address(structures)
            child = start_simply(_native.run_program, address, (structures, base), flags)
            assert isinstance(child, Child)  # noqa: S101 - for types
        else:
            child = begin(Code(structures, base), flags, exit_signal, set_tid, cgroup)
        if suspends and child._has_execed():
            return child
        if maps is not None:
            maps.write(child)
        whole = program.copy()
        whole._add_execs(paths, args, strings)
        return whole._finish(child, seconds, suspended=suspends)


def prepare(  # noqa: D417 - the other arguments are those of spawn
    descriptors: Descriptors = STANDARD,
    *,
    closes: bool = True,
    cwd: Path | int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    groups: tuple[int, ...] | None = None,
    umask: int = -1,
    start_new_session: bool = False,
    process_group: int | None = None,
    restore_signals: bool = True,
    flags: int = 0,
    uid_map: IdMap | None = None,
    gid_map: IdMap | None = None,
    rlimits: Mapping[int, int | tuple[int, int]] | None = None,
    pdeathsig: int | None = None,
    no_new_privs: bool = False,
    cgroup: int | str | os.PathLike[str] | HasFileno | None = None,
    nice: int | None = None,
    affinity: Iterable[int] | None = None,
    scheduler: tuple[int, int] | None = None,
    ioprio: tuple[int, int] | None = None,
    hostname: str | None = None,
    before_exec: Callable[[Program], object] | None = None,
    exit_signal: int | None = None,
    set_tid: Sequence[int] = (),
    timeout: float | None = None,
) -> Prepared:
    """Make of options, with names looked up, what can be started.

    Args:
        descriptors: ours by their numbers in the child; -1: what is there.
        closes: close all other descriptors.
    """
    flags = operator.index(flags)
    if flags & _FILES:
        raise ValueError(
            "CLONE_FILES shares the descriptors that are moved and closed in the child"
        )
    if flags & _NEWTIME:
        _check_time_namespaces()
    seconds = check_timeout(timeout)
    maps = parent = None
    if uid_map is not None or gid_map is not None:
        maps = IdMaps(uid_map, gid_map, groups=groups is not None)
        flags |= _NEWUSER
    if pdeathsig is not None or (maps is not None and maps.by_parent):
        parent = Descriptor.this_process()
    # What has descriptors of this call in it is not worth to be kept.
    make = setup if maps is None and parent is None else setup.__wrapped__
    program = make(
        maps,
        descriptors,
        flags & _NEWTIME,
        hostname,
        cwd,  # type: ignore[arg-type] # a PathLike need not be hashable, but is
        umask,
        restore_signals,
        start_new_session,
        process_group,
        None if rlimits is None else tuple((name, _limits(both)) for name, both in rlimits.items()),
        None if scheduler is None else (scheduler[0], scheduler[1]),
        nice,
        None if affinity is None else frozenset(affinity),
        None if ioprio is None else (ioprio[0], ioprio[1]),
        groups,
        gid,
        uid,
        pdeathsig,
        None if parent is None else parent.number,
        no_new_privs,
        closes and before_exec is None,
    )
    if before_exec is not None:
        program = program.copy()
        before_exec(program)
        if closes:
            add_closing(program, dict(descriptors))
    waits = maps is not None and maps.by_parent
    suspends = seconds is None and not waits
    return Prepared(
        program,
        # Exec moves the process to its time namespace; clone refuses that with VM.
        program_flags(flags & ~_NEWTIME, suspends=suspends),
        suspends,
        exit_signal is None and cgroup is None and set_tid == (),
        exit_signal,
        set_tid,
        cgroup,
        seconds,
        maps if waits else None,
        parent,
    )


# --- the setup ----------------------------------------------------------------------------------


@lru_cache(maxsize=128)
def setup(  # noqa: PLR0912 - one branch for each option, in the order that matters
    maps: IdMaps | None,
    descriptors: Descriptors,
    new_time: int,
    hostname: str | None,
    cwd: Path | int | None,
    umask: int,
    restore_signals: bool,
    start_new_session: bool,
    process_group: int | None,
    rlimits: tuple[tuple[int, int | tuple[int, int]], ...] | None,
    scheduler: tuple[int, int] | None,
    nice: int | None,
    affinity: frozenset[int] | None,
    ioprio: tuple[int, int] | None,
    groups: tuple[int, ...] | None,
    gid: int | None,
    uid: int | None,
    pdeathsig: int | None,
    parent_pidfd: int | None,
    no_new_privs: bool,
    closes: bool,
) -> Program:
    """Make the steps that depend on the options alone; the order is that of `spawn`.

    They are kept for the next child with the same options. A copy of the program is what more steps
    may be added to.
    """
    program = Program()
    watched: int | Result | None = parent_pidfd
    if maps is not None:
        maps.add_steps(program, watched)
    if isinstance(cwd, int):
        program.fchdir(cwd)  # while its number means what the caller means by it
    spare = Spare(descriptors, closes)
    if watched is not None and pdeathsig is not None:
        watched = spare.copy(program, watched)
    add_descriptors(program, descriptors, spare)
    if new_time:
        program.unshare(new_time)
    if hostname is not None:
        program.sethostname(hostname)
    if cwd is not None and not isinstance(cwd, int):
        program.chdir(cwd)
    if umask >= 0:
        program.umask(umask)
    if restore_signals:
        program.default_signals(RESTORED_SIGNALS)
    if start_new_session:
        program.setsid()
    if process_group is not None:
        program.setpgid(process_group)
    for resource, limit in rlimits or ():
        soft, hard = (limit, limit) if isinstance(limit, int) else limit
        program.setrlimit(resource, soft, hard)
    if scheduler is not None:
        program.sched_setscheduler(*scheduler)
    if nice is not None:
        program.setpriority(nice)
    if affinity is not None:
        program.sched_setaffinity(affinity)
    if ioprio is not None:
        program.ioprio_set(*ioprio)
    # The user last, while it may still change the groups.
    if groups is not None:
        program.setgroups(groups)
    if gid is not None:
        program.setresgid(gid)
    if uid is not None:
        program.setresuid(uid)
    if pdeathsig is not None:
        program.set_pdeathsig(pdeathsig, watched)
    if no_new_privs:
        program.set_no_new_privs()
    if closes:
        add_closing(program, dict(descriptors))
    return program


class Spare:
    """Numbers for copies of descriptors, where they are in nobody's way."""

    def __init__(self, descriptors: Descriptors, closes: bool) -> None:
        self._used = {number for pair in descriptors for number in pair}
        self._closes = closes

    def copy(self, program: Program, fd: int | Result) -> int | Result:
        """Copy a descriptor, close-on-exec."""
        if not self._closes:
            return program.dup_above(fd, max(self._used, default=0) + 1)
        # Of what is not given to the child any number may be overwritten. Low ones are always
        # within the limit.
        number = next(n for n in range(3, MOST_FDS) if n not in self._used and n != fd)
        self._used.add(number)
        program.syscall("dup3", fd, number, os.O_CLOEXEC)
        return number


def add_descriptors(program: Program, descriptors: Descriptors, spare: Spare) -> None:
    """Move descriptors to their numbers in the child, whatever the overlaps."""
    pending: dict[int, int | Result] = {}
    for target, source in descriptors:
        if source == target:
            program.dup2(target, target)
        elif source != -1:
            pending[target] = source
    while pending:
        # One whose number is not the source of another can be made now.
        sources = list(pending.values())
        free = [target for target in pending if target not in sources]
        if free:
            for target in free:
                program.dup2(pending.pop(target), target)
            continue
        # What is left are cycles. Each needs one copy.
        first = next(iter(pending))
        copy = spare.copy(program, first)
        pending = {to: copy if what == first else what for to, what in pending.items()}


def add_closing(program: Program, kept: Iterable[int], flags: int = 0) -> None:
    """Close all descriptors but some; `flags` are those of `Program.close_range`."""
    first = 0
    for fd in sorted(kept):
        if fd > first:
            program.close_range(first, fd - 1, flags)
        first = fd + 1
    program.close_range(first, flags=flags)


def check_args(args: Sequence[Path]) -> list[Path]:
    """List the arguments of a program.

    Raises:
        TypeError: `args` is one string or path.
        ValueError: there is none.
    """
    if isinstance(args, str | bytes | os.PathLike):
        raise TypeError("args must be a sequence of arguments, not one string or path")
    found = list(args)
    if not found:
        raise ValueError("args must have the program's name at least")
    return found


def executables(name: Path, env: Env | None) -> list[Path]:
    """List the files that a name may mean: itself, or those along the PATH of an environment."""
    if type(name) is str and "/" in name:
        return [name]
    encoded = os.fsencode(name)
    if b"/" in encoded:
        return [encoded]
    directories = os.get_exec_path(env)  # type: ignore[arg-type] # typeshed wants one kind of key
    return [os.path.join(os.fsencode(path), encoded) for path in directories]


# From this version on exec enters the time namespace that was unshared (switch timens when a task
# gets a new mm, fs/exec.c); before, the process stays out of it and cannot even vfork.
_TIME_BY_EXEC = (6, 2)


def _check_time_namespaces() -> None:
    """Refuse what would not be what was asked for.

    Raises:
        OSError: EOPNOTSUPP.
    """
    release = os.uname().release.split("-")[0].split(".")
    if tuple(int(part) for part in release[:2]) < _TIME_BY_EXEC:
        raise OSError(
            errno.EOPNOTSUPP,
            f"{os.strerror(errno.EOPNOTSUPP)}: a program enters a new time namespace by exec from "
            "Linux 6.2 on",
        )


# --- names --------------------------------------------------------------------------------------


def user_id(user: int | str) -> int:
    """Look up a user.

    Raises:
        KeyError: there is no user of that name.
        ValueError, OverflowError: the id is negative, or has more than 32 bits.
    """
    return pwd.getpwnam(user).pw_uid if isinstance(user, str) else check_id(user)


def group_id(group: int | str) -> int:
    """Look up a group.

    Raises:
        KeyError: there is no group of that name.
        ValueError, OverflowError: the id is negative, or has more than 32 bits.
    """
    return grp.getgrnam(group).gr_gid if isinstance(group, str) else check_id(group)


def _limits(both: int | Sequence[int]) -> int | tuple[int, int]:
    if isinstance(both, int):
        return both
    soft, hard = both
    return soft, hard


def check_fds(fds: Mapping[int, File]) -> dict[int, File]:
    """Refuse numbers that no descriptor has.

    Raises:
        ValueError: there are such.
    """
    for target, file in fds.items():
        if not isinstance(target, int) or not 0 <= target < MOST_FDS:
            raise ValueError(f"fds must have descriptors as keys, not {target!r}")
        if isinstance(file, int) and not 0 <= file < MOST_FDS:
            raise ValueError(f"fds[{target}] is no descriptor: {file!r}")
    return {int(target): file for target, file in fds.items()}


def _numbers(fds: Mapping[int, File]) -> dict[int, int]:
    numbers = {}
    for target, file in check_fds(fds).items():
        number = file if isinstance(file, int) else file.fileno()
        if not 0 <= number < MOST_FDS:
            raise ValueError(f"fds[{target}] is no descriptor: {file!r}")
        numbers[target] = int(number)
    return numbers


# --- id maps ------------------------------------------------------------------------------------

_NEWIDMAP = {"uid": "newuidmap", "gid": "newgidmap"}


class IdMaps:
    """The id maps of a new user namespace, and who writes them.

    The kernel lets a process without privileges map just its own id (user_namespaces(7)). That the
    child does itself; all else is done by this process, or by newuidmap and newgidmap, while the
    child waits.
    """

    def __init__(self, uid_map: IdMap | None, gid_map: IdMap | None, *, groups: bool) -> None:
        """Check what the user gave.

        Raises:
            ValueError: a map is empty, or has ids that there are not.
        """
        own = {"uid": os.geteuid(), "gid": os.getegid()}
        self._maps: dict[str, list[tuple[int, int, int]]] = {}
        for kind, given in (("uid", uid_map), ("gid", gid_map)):
            if given is None:
                continue
            lines = [(given, own[kind], 1)] if isinstance(given, int) else [_line(x) for x in given]
            if not lines:
                raise ValueError(f"{kind}_map is empty")
            if any(min(line) < 0 or max(line) >= 1 << 32 or line[2] == 0 for line in lines):
                raise ValueError(f"{kind}_map has ids that there are not: {lines}")
            self._maps[kind] = lines
        # The child may write its group map only if it gives up setgroups.
        self.by_parent = (groups and gid_map is not None) or any(
            len(lines) != 1 or lines[0][1:] != (own[kind], 1) for kind, lines in self._maps.items()
        )
        if self.by_parent:
            self._opened = Descriptor.gate()
            self.number = self._opened.number
            self.gate: int | Result = self.number  # as the child has it

    def outside(self, kind: str, inside: int) -> int | None:
        """Say which of our ids an id inside is."""
        for first, ours, count in self._maps[kind]:
            if first <= inside < first + count:
                return ours + inside - first
        return None

    def add_steps(self, program: Program, parent_pidfd: int | Result | None) -> None:
        """Let the child write the maps, or wait until they are written."""
        if self.by_parent:
            program.set_pdeathsig(SIGKILL, parent_pidfd)  # nobody would open the gate after our end
            ready = program.syscall("getpid")
            program.syscall("read", self.gate, ready.pointer, 8, expect=8)
            program.set_pdeathsig(0)
            return
        if "gid" in self._maps:
            program.write_file("/proc/self/setgroups", b"deny")
        for kind in self._maps:
            program.write_file(f"/proc/self/{kind}_map", self._text(kind))

    def _text(self, kind: str) -> bytes:
        return "".join("{} {} {}\n".format(*line) for line in self._maps[kind]).encode()

    def write(self, child: Child) -> None:
        """Write the maps of a child that waits, and let it go on; if that fails it ends.

        Raises:
            OSError: that is not allowed.
        """
        try:
            for kind in self._maps:
                try:
                    _write(f"/proc/{child.pid}/{kind}_map", self._text(kind))
                except PermissionError as error:
                    self._write_with_help(kind, child.pid, error)
            os.eventfd_write(self._opened.number, 1)
        except BaseException:
            child.kill()
            child.wait()
            child.close()
            raise

    def _write_with_help(self, kind: str, pid: int, error: PermissionError) -> None:
        lines = self._maps[kind]
        own = os.getegid()
        if kind == "gid" and len(lines) == 1 and lines[0][1:] == (own, 1):
            _write(f"/proc/{pid}/setgroups", b"deny")
            _write(f"/proc/{pid}/gid_map", self._text(kind))
            return
        import shutil  # noqa: PLC0415

        helper = shutil.which(_NEWIDMAP[kind])
        if helper is None:
            error.strerror = f"{error.strerror}, and there is no {_NEWIDMAP[kind]}"
            raise error
        from ramet import _popen  # noqa: PLC0415 - as seldom needed as it is slow to import

        numbers = [str(number) for line in lines for number in line]
        done = _popen.run([helper, str(pid), *numbers], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            text = f"{error.strerror}; {done.stderr.strip()}"
            raise PermissionError(error.errno, text, f"/proc/{pid}/{kind}_map") from None


def _line(line: Any) -> tuple[int, int, int]:
    inside, outside, count = line
    return int(inside), int(outside), int(count)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
