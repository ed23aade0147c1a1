"""Each option that makes a policy, by its effect."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet._cli._options import OPTIONS, Draft, drafted
from ramet._cli._words import read
from ramet._cli.run import PAGE
from ramet.sandbox import Bind, Sandbox, _seccomp
from tests.cli.conftest import Command

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs privileges to map ids of others")

_NAMESPACE = "readlink /proc/self/ns/"
_CAPABILITIES = "grep CapEff /proc/self/status | cut -f2"
_OURS = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("net", "ipc", "uts", "cgroup")}


# Options, what is run by sh, and what that writes.
EFFECTS = (
    ("", "echo hi", "hi"),
    ("", "pwd; env | grep -v PWD= | grep -v SHLVL= | grep -v _=", "/"),
    ("--setenv A b", "echo $A", "b"),
    ("--setenv A b --unsetenv A", "echo [$A]", "[]"),
    ("--setenv A b --clearenv --setenv B c", "echo [$A$B]", "[c]"),
    ("--chdir /usr", "pwd", "/usr"),
    ("--wd /usr", "pwd", "/usr"),
    ("--uid 7 --gid 8", "id -u; id -g", "7\n8"),
    ("--setuid 7 --setgid 8", "id -u; id -g", "7\n8"),
    ("--map-user=7 --map-group=8", "id -u; id -g", "7\n8"),
    ("--map-root-user", "id -u; id -g", "0\n0"),
    ("--map-current-user", "id -u; id -g", f"{os.geteuid()}\n{os.getegid()}"),
    ("--hostname box", "uname -n", "box"),
    ("--share-uts", "uname -n", os.uname().nodename),
    ("--share-net", f"{_NAMESPACE}net", _OURS["net"]),
    ("--share-ipc", f"{_NAMESPACE}ipc", _OURS["ipc"]),
    ("--share-uts", f"{_NAMESPACE}uts", _OURS["uts"]),
    ("--share-cgroup", f"{_NAMESPACE}cgroup", _OURS["cgroup"]),
    ("--cap-add net_raw", _CAPABILITIES, "0000000000002000"),
    ("--cap-add CAP_NET_RAW,CAP_CHOWN --cap-drop NET_RAW", _CAPABILITIES, "0000000000000001"),
    ("--cap-add ALL --cap-drop ALL", _CAPABILITIES, "0000000000000000"),
    ("--tmpfs /x", "echo a >/x/y; cat /x/y; stat -c %a /x", "a\n755"),
    ("--size 64K --tmpfs /x", "head -c 99999 /dev/zero >/x/y 2>/dev/null; wc -c </x/y", "65536"),
    ("--inodes 3 --tmpfs /x", "touch /x/1 /x/2 /x/3 2>/dev/null; ls /x", "1\n2"),
    ("--perms 711 --tmpfs /x", "stat -c %a /x", "711"),
    ("--dir /x/y", "stat -c '%F %a' /x/y; touch /x/y/z 2>/dev/null || echo no",
     "directory 755\nno"),
    ("--perms 700 --dir /x", "stat -c %a /x", "700"),
    ("--symlink some/where /x", "readlink /x", "some/where"),
    ("--data 'a text' /x/y", "cat /x/y; stat -c %a /x/y", "a text444"),
    ("--perms 400 --data t /x", "stat -c %a /x", "400"),
    ("--proc /p", "cat /p/self/comm", "cat"),
    ("--dev /d", "echo gone >/d/null; stat -c %F /d/zero", "character special file"),
    ("--size 64K --dev /d", "head -c 99999 /dev/zero >/d/shm/y 2>/dev/null; wc -c </d/shm/y",
     "65536"),
    ("--dir /tmp --symlink here /x --symlink there /x", "readlink /x; touch /tmp/x || echo no",
     "there\nno"),
    ("--rlimit nofile=64", "ulimit -Sn; ulimit -Hn", "64\n64"),
    ("--rlimit NOFILE=32:64", "ulimit -Sn; ulimit -Hn", "32\n64"),
    ("--rlimit stack=1M:unlimited", "ulimit -Ss", "1024"),
    ("--file-size 1K", "trap '' XFSZ; head -c 9999 /dev/zero >/tmp/x 2>/dev/null; wc -c </tmp/x",
     "1024"),
    ("--no-seccomp", "grep Seccomp: /proc/self/status | cut -f2", "0"),
    ("--deny-syscalls mkdir,mkdirat", "mkdir /tmp/x 2>/dev/null || echo no", "no"),
    ("--unshare-user --unshare-user-try --unshare-pid --unshare-mount --new-session"
     " --die-with-parent", "echo hi",
     "hi"),
)  # fmt: skip


@pytest.mark.parametrize(("options", "script", "said"), EFFECTS)
def test_effect(command: Command, options: str, script: str, said: str) -> None:
    done = command("run", *shlex.split(options), "--", "sh", "-c", script)
    assert done.stdout.strip() == said.strip(), done.stderr


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, "") for name in _OURS),
        *((name, f"--share-{name} --unshare-all") for name in _OURS),
        ("net", "--share-net --unshare-net"),
        ("ipc", "--share-ipc --unshare-ipc"),
        ("uts", "--share-uts --unshare-uts"),
        ("cgroup", "--share-cgroup --unshare-cgroup"),
        ("cgroup", "--share-cgroup --unshare-cgroup-try"),
    ],
)
def test_not_shared(command: Command, name: str, options: str) -> None:
    done = command("run", *options.split(), "--", "sh", "-c", f"{_NAMESPACE}{name}")
    assert done.stdout.startswith(f"{name}:")
    assert done.stdout.strip() != _OURS[name]


def test_every_option_is_tested() -> None:
    text = Path(__file__).read_text()
    names = [
        name for options in OPTIONS.values() for each in options for name in each.names.split()
    ]
    assert [name for name in names if not re.search(rf'{name}[ ="]', text)] == []


# --- files of ours ------------------------------------------------------------------------------


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    directory = tmp_path / "ours"
    directory.mkdir()
    (directory / "file").write_text("ours\n")
    for each in (tmp_path, directory, directory / "file"):
        each.chmod(0o777)
        if os.geteuid() == 0:  # an overlay copies what is of users that there are in the sandbox
            os.chown(each, 65534, 65534)
    return directory


@pytest.mark.parametrize(
    ("option", "here", "outside"),
    [
        ("--ro-bind", "ours", "ours"),
        ("--ro-bind-try", "ours", "ours"),
        ("--bind", "theirs", "theirs"),
        ("--bind-try", "theirs", "theirs"),
        ("--overlay-src", "theirs", "ours"),
    ],
)
def test_binds(command: Command, ours: Path, option: str, here: str, outside: str) -> None:
    options = [option, str(ours), "/x"]
    if option == "--overlay-src":
        options[2:] = ["--size", "1M", "--inodes", "20", "--tmp-overlay", "/x"]
    script = "{ echo theirs >/x/file; } 2>/dev/null; cat /x/file"
    done = command("run", *options, "--", "sh", "-c", script)
    assert done.stdout == f"{here}\n", done.stderr
    assert (ours / "file").read_text() == f"{outside}\n"


@pytest.mark.parametrize("option", ["--ro-bind-try", "--bind-try"])
def test_binds_of_nothing(command: Command, option: str) -> None:
    done = command("run", option, "/no/such/file", "/x", "--", "ls", "/x")
    assert "No such file" in done.stderr
    assert done.status == 2


def test_presets(command: Command) -> None:
    script = "import ramet, os; print(os.path.exists('/bin/sh'))"
    assert command("run", "--python", "--", "python3", "-c", script).stdout == "False\n"
    both = command("run", "--python", "--system", "--", "python", "-c", script)
    assert both.stdout == "True\n"
    assert command("run", "--no-system", "--", "true").status == 127


# --- descriptors --------------------------------------------------------------------------------


@contextmanager
def _descriptor(data: bytes) -> Iterator[str]:
    """A descriptor from which something can be read; who reads it closes it."""
    number = os.memfd_create("data")
    os.write(number, data)
    os.lseek(number, 0, os.SEEK_SET)
    yield str(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(int(number))


@pytest.mark.parametrize("option", ["--file", "--bind-data", "--ro-bind-data"])
def test_a_file_from_a_descriptor(command: Command, option: str) -> None:
    with _descriptor(b"data") as number:
        done = command("run", "--perms", "400", option, number, "/x", "--", "cat", "/x")
    assert done.stdout == "data"


@pytest.mark.parametrize("option", ["--seccomp", "--add-seccomp-fd"])
def test_a_filter_from_a_descriptor(command: Command, option: str) -> None:
    denied = _seccomp.filter_program(deny=["mkdir", "mkdirat"])
    with _descriptor(denied) as number:
        done = command("run", "--no-seccomp", option, number, "--", "mkdir", "/x")
    assert "Operation not permitted" in done.stderr
    assert done.status == 1


def test_allowed_system_calls(command: Command) -> None:
    words = ("--", "unshare", "--user", "true")
    assert "Operation not permitted" in command("run", *words).stderr
    assert command("run", "--allow-syscalls", "unshare", *words).status == 0


# --- ids, protections, limits -------------------------------------------------------------------


@root
@pytest.mark.parametrize("lines", [("0:65534:1", "5:100:10"), ("65534,0,1", "100,5,10")])
def test_maps(command: Command, lines: tuple[str, str]) -> None:
    options = [word for line in lines for word in ("--map-users", line, "--map-groups", line)]
    script = "cat /proc/self/uid_map /proc/self/gid_map"
    done = command("run", "--uid", "5", "--gid", "5", *options, "--", "sh", "-c", script)
    expected = [["0", "65534", "1"], ["5", "100", "10"]] * 2
    assert [line.split() for line in done.stdout.splitlines()] == expected, done.stderr


def test_processes(command: Command) -> None:
    script = "for i in 1 2 3 4 5 6; do sleep 1 & done 2>/dev/null; kill $!"
    assert command("run", "--processes", "4", "--", "sh", "-c", script).status == 2


def _made(*words: str) -> Sandbox:
    return drafted(read(PAGE, words)).finish()


def test_limits_of_groups() -> None:
    made = _made("--memory", "1.5G", "--swap=1M", "--cpu", "0.5", "--cgroup", "/sys/fs/cgroup")
    assert (made.memory, made.swap, made.cpu) == (3 << 29, 1 << 20, 0.5)
    assert made.cgroup == "/sys/fs/cgroup"
    times = _made("--cpu-time", "1.5", "--timeout", "2")
    assert (times.cpu_time, times.wall_time) == (1.5, 2)
    assert not _made("--no-landlock").landlock
    assert _made("--output-size", "1K").output_size == 1024


def test_what_may_be_missing(tmp_path: Path) -> None:
    assert _made("--optional", "memory,cpu").optional == {"memory", "cpu"}
    required = _made("--optional", "uts", "--require", "seccomp", "--require", "cpu")
    assert (required.optional, required.require) == (frozenset(), {"seccomp", "cpu"})
    policy = tmp_path / "policy.toml"
    policy.write_text('require = ["seccomp", "cpu"]')
    assert _made("--policy", str(policy), "--optional", "cpu").require == {"seccomp"}


def test_a_policy_that_is_changed(tmp_path: Path, ours: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'system = true\nmemory = "1M"\nrlimits = {nofile = 10}\ncapabilities = ["CAP_CHOWN"]\n'
        '[env]\nA = "a"\n[files."/x//y"]\nbind = "ours"\n[files."/z"]\ndirectory = true\n'
    )
    options = ["--tmpfs", "/z/", "--setenv", "B", "b", "--memory", "2M", "--rlimit", "core=1"]
    made = _made("--policy", str(policy), *options, "--cap-add", "kill", "--cap-drop", "chown")
    assert made.files["/x/y"] == Bind(str(ours))
    assert set(made.files) == {"/x/y", "/z"}
    assert made.env == {"A": "a", "B": "b"}
    assert made.rlimits == {"nofile": 10, "core": 1}
    assert made.capabilities == {"kill"}
    assert made.memory == 2 << 20
    assert made.system
    assert not _made("--policy", str(policy), "--no-system").system


def test_no_options_are_the_default() -> None:
    draft = Draft(None)
    assert draft.finish() == Sandbox(system=True) == _made()


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--bogus", "there is no option --bogus"),
        ("--memry 1M", "there is no option --memry; was --memory meant?"),
        ("--system=yes", "--system is followed by nothing"),
        ("--memory 1x", "--memory 1x: a size is a number with K, M, G or T: '1x'"),
        ("--uid me", "--uid me: invalid literal"),
        ("--timeout -1", "wall_time must be a positive number"),
        ("--size 1M", "--size must be followed by the option that it is for"),
        ("--perms 700 --ro-bind / /x", "--ro-bind / /x: --perms is not for this"),
        ("--perms 9 --dir /x", "--perms 9: invalid literal"),
        ("--tmp-overlay /x", "--tmp-overlay /x: --overlay-src must come before it"),
        ("--ro-bind / /", "--ro-bind / /: the root directory itself is always a new one"),
        ("--tmpfs x", "--tmpfs x: a path in the sandbox begins with a slash: 'x'"),
        ("--ro-bind /no/such /x", "/no: No such file or directory"),
        ("--policy /no/such", "/no/such: No such file or directory"),
        ("--file 999 /x", "--file 999 /x: Bad file descriptor"),
        ("--rlimit nofile", "--rlimit nofile: it is NAME=LIMIT"),
        ("--rlimit nofil=1", "rlimits has no 'nofil'; was 'nofile' meant?"),
        ("--cap-add fly", "there is no capability 'fly'"),
        ("--deny-syscalls fly", "there is no system call 'fly'"),
        ("--optional fly", "optional has no 'fly'"),
        (
            "--cgroup /no/such",
            "/no/such is no group of cgroup v2: No such file or directory; see ramet",
        ),
        ("--map-users 1:2", "--map-users 1:2: not enough values"),
    ],
)
def test_mistakes(command: Command, options: str, said: str) -> None:
    """They are told in one line, and nothing is run."""
    done = command("run", *options.split(), "--", "echo", "run")
    assert done.status == 125
    assert done.stderr.startswith("ramet run: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
