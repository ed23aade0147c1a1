"""Policies: what they refuse and how that is said, how they compare and travel, and TOML."""

from __future__ import annotations

import os
import pickle
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.sandbox import (
    Bind,
    Devices,
    Directory,
    File,
    Overlay,
    Proc,
    Sandbox,
    Symlink,
    Tmpfs,
)
from ramet.sandbox import _seccomp as seccomp
from ramet.sandbox._policy import OPTIONAL, Policy, _from_toml, parse_size
from ramet.sandbox._root import Source

try:
    seccomp.libseccomp()
    WITHOUT_LIBSECCOMP = ""
except RuntimeError as error:
    WITHOUT_LIBSECCOMP = str(error)

examples = settings(max_examples=60, deadline=None)
RETURN_ALLOW = bytes.fromhex("06000000 0000ff7f")  # a filter: BPF_RET, SECCOMP_RET_ALLOW
FULL: dict[str, Any] = {
    "files": {"/etc": Bind("/etc"), "/note": File(b"hello", 0o600), "/space": Tmpfs(1 << 20)},
    "system": True,
    "cwd": "/space",
    "env": {"LANG": "C.UTF-8"},
    "uid": 5,
    "gid": 6,
    "uid_map": [(5, 100_000, 2), (0, 0, 1)],
    "gid_map": 6,
    "hostname": "box",
    "network": "host",
    "share": ["ipc", "uts"],
    "capabilities": ["net_raw"],
    "seccomp_filters": [bytearray(RETURN_ALLOW)],
    "rlimits": {"nofile": 64, "stack": (1 << 20, 1 << 23), "memlock": -1},
    "memory": 1 << 30,
    "swap": 0,
    "processes": 10,
    "cpu": 0.5,
    "cgroup": "/sys/fs/cgroup",
    "cpu_time": 2,
    "wall_time": 2.5,
    "output_size": 1000,
    "file_size": 1 << 20,
    "preload": ["json"],
    "optional": ["landlock", "cpu"],
}

# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"files": []}, r"files must be a mapping, not \[\]"),
        ({"env": "A=b"}, "env must be a mapping, not 'A=b'"),
        ({"rlimits": 5}, "rlimits must be a mapping, not 5"),
        ({"files": {"/x": "/etc"}}, "'/x' must be a Bind, Tmpfs or the like, not '/etc'"),
        (
            {"files": {"/x": Symlink(cast("str", 5))}},
            "'/x': a symbolic link's target must be a string, not 5",
        ),
        ({"share": "ipc"}, "share must be several names, not one string: 'ipc'"),
        ({"capabilities": b"x"}, "capabilities must be several names"),
        ({"allow_syscalls": "bpf"}, "allow_syscalls must be several names"),
        ({"require": "landlock"}, "require must be several names"),
        ({"optional": [5]}, "optional must have strings, not 5"),
        ({"preload": "json"}, "preload must be several names"),
        ({"seccomp_filters": ["x"]}, "bytes-like"),
        ({"cgroup": 5}, "PathLike"),
        ({"system": 1}, "system must be true or false, not 1"),
        ({"python": "yes"}, "python must be true or false, not 'yes'"),
        ({"seccomp": None}, "seccomp must be true or false, not None"),
        ({"landlock": 0}, "landlock must be true or false, not 0"),
        ({"hostname": b"box"}, "hostname must be a string"),
        ({"env": {"A": 1}}, "env must have strings: 'A': 1"),
        ({"env": {b"A": "x"}}, "env must have strings: b'A'"),
        ({"memory": "64M"}, "memory must be a whole number, not '64M'"),
        ({"memory": 1.5}, "memory must be a whole number, not 1.5"),
        ({"processes": True}, "processes must be a whole number, not True"),
        ({"output_size": None}, "output_size must be a whole number, not None"),
        ({"cpu": "1"}, "cpu must be a number, not '1'"),
        ({"wall_time": True}, "wall_time must be a number, not True"),
        ({"uid": "root"}, "uid must be a number, not 'root'"),
        ({"gid": True}, "gid must be a number, not True"),
        ({"uid_map": "1000"}, "uid_map must be an id, or triples of numbers, not '1000'"),
        ({"gid_map": [(1, 2)]}, r"gid_map must be an id, or triples of numbers, not \[\(1, 2\)\]"),
        ({"uid_map": 1.5}, "uid_map must be an id, or triples of numbers, not 1.5"),
        ({"uid_map": True}, "uid_map must be an id, or triples of numbers, not True"),
        ({"rlimits": {"nofile": "64"}}, r"rlimits\['nofile'\] must be a limit, or soft and hard"),
        ({"rlimits": {"nofile": None}}, r"rlimits\['nofile'\] must be a limit, or soft and hard"),
        ({"rlimits": {"nofile": True}}, r"rlimits\['nofile'\] must be a limit, or soft and hard"),
        ({"rlimits": {"nofile": (1, 2, 3)}}, r"rlimits\['nofile'\] must be a limit, or soft and"),
    ],
)
def test_wrong_kinds(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Policy(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"files": {"etc": Directory()}}, "begins with a slash: 'etc'"),
        ({"files": {"/x": Tmpfs(0)}}, "'/x': size must be a positive number: 0"),
        ({"files": {"/x": Directory(0o4755)}}, "'/x': mode must be permissions"),
        ({"files": {"/x": Symlink("")}}, "'/x': a symbolic link leads somewhere"),
        ({"cwd": "tmp"}, "begins with a slash: 'tmp'"),
        ({"cwd": "/a/../b"}, "no '..' in it"),
        ({"network": "hots"}, "network has no 'hots'; was 'host' meant?"),
        ({"network": "bridge"}, "network has no 'bridge': host, none"),
        ({"share": ["user"]}, "share has no 'user'"),
        ({"share": ["igc"]}, "was 'ipc' meant"),
        ({"capabilities": ["sys_admi"]}, "no capability 'sys_admi'"),
        ({"seccomp": False, "allow_syscalls": ["bpf"]}, "allow_syscalls is for seccomp, which is"),
        ({"seccomp": False, "deny_syscalls": ["bpf"]}, "deny_syscalls is for seccomp, which is"),
        ({"seccomp_filters": [b""]}, "8 bytes for each instruction: 0"),
        ({"seccomp_filters": [bytes(9)]}, "8 bytes for each instruction: 9"),
        ({"require": ["cpu"], "optional": ["memory"]}, "give require, or optional"),
        ({"require": ["files"]}, "require has no 'files'"),
        ({"optional": ["namespaces"]}, "optional has no 'namespaces'"),
        ({"optional": ["landlok"]}, "was 'landlock' meant?"),
        ({"hostname": ""}, "hostname must have 1 to 64 bytes: ''"),
        ({"hostname": "é" * 33}, "hostname must have 1 to 64 bytes"),
        ({"hostname": "a\nb"}, "hostname must have"),
        ({"hostname": "a\0b"}, "hostname must have"),
        ({"env": {"": "x"}}, "env can't have '': 'x'"),
        ({"env": {"A=B": "x"}}, "env can't have 'A=B'"),
        ({"env": {"A": "x\0y"}}, "env can't have 'A'"),
        ({"memory": 0}, "memory must be at least 1, "),
        ({"memory": 1 << 62}, "memory must be at least 1, and below 2\\*\\*62"),
        ({"memory": 1, "swap": -1}, "swap must be at least 0"),
        ({"swap": 1}, "swap is for what does not fit into memory"),
        ({"processes": 0}, "processes must be at least 1"),
        ({"file_size": -1}, "file_size must be at least 1"),
        ({"cpu": 0}, "cpu must be a positive number"),
        ({"cpu": float("nan")}, "cpu must be a positive number"),
        ({"cpu_time": -1}, "cpu_time must be a positive number"),
        ({"wall_time": float("inf")}, "wall_time must be a positive number"),
        ({"uid": -1}, "uid must be 0 to"),
        ({"gid": (1 << 32) - 1}, "gid must be 0 to"),
        ({"uid": 1 << 40}, "uid must be 0 to"),
        ({"uid_map": 5}, "uid_map must have 1000 in it: 5"),
        ({"gid_map": [(0, 0, 1000)]}, "gid_map must have 1000 in it"),
        ({"uid_map": []}, "uid_map must have 1000 in it"),
        ({"uid_map": [(1000, -1, 1)]}, "uid_map has ids that there are not"),
        ({"uid_map": [(1000, 0, 1 << 32)]}, "uid_map has ids that there are not"),
        ({"rlimits": {"nofiles": 5}}, "rlimits has no 'nofiles'; was 'nofile' meant?"),
        ({"rlimits": {"ofile": 5}}, "rlimits has no 'ofile'; was 'nofile' meant?"),
        ({"rlimits": {"cpu": 5}}, r"cpu_time sets this limit, not rlimits\['cpu'\]"),
        ({"rlimits": {"fsize": 5}}, "file_size sets this limit"),
        ({"rlimits": {"nproc": 5}}, "processes sets this limit"),
        ({"rlimits": {"nofile": -2}}, r"rlimits\['nofile'\] must be -1 \(none\) or more: -2"),
        ({"rlimits": {"nofile": (5, 4)}}, "must not be above the hard limit"),
        ({"rlimits": {"nofile": (-1, 4)}}, "must not be above the hard limit"),
    ],
)
def test_bad_values(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Policy(**fields)


def test_all_that_is_given_is_a_keyword() -> None:
    with pytest.raises(TypeError, match="without their names"):
        Policy({})  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="memroy"):
        Policy(memroy=5)  # type: ignore[call-arg]


def test_a_source_that_is_missing(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(FileNotFoundError) as caught:
        Policy(files={"/x": Bind(missing)})
    assert caught.value.filename == missing
    assert "x" not in Policy(files={"/x": Bind(missing, missing_ok=True)}).entries
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Policy(files={"/x": Overlay(tmp_path / "file")})


@pytest.mark.skipif(bool(WITHOUT_LIBSECCOMP), reason=WITHOUT_LIBSECCOMP)
@pytest.mark.parametrize("name", ["allow_syscalls", "deny_syscalls"])
def test_system_calls(name: str) -> None:
    made = Policy(**{name: ["bpf"]})  # type: ignore[arg-type]
    assert getattr(made, name) == {"bpf"}
    with pytest.raises(ValueError, match="no system call 'bfp'"):
        Policy(**{name: ["bfp"]})  # type: ignore[arg-type]


@pytest.mark.skipif(bool(WITHOUT_LIBSECCOMP), reason=WITHOUT_LIBSECCOMP)
@pytest.mark.parametrize("name", ["execve", "execveat", "exit", "exit_group"])
def test_calls_without_which_nothing_runs(name: str) -> None:
    with pytest.raises(ValueError, match=f"nothing could run without {name}"):
        Policy(deny_syscalls=[name])


# --- what it comes to -----------------------------------------------------------------------------


def test_the_default_allows_nothing() -> None:
    made = Policy()
    assert dict(made.entries) == {}
    assert made.env == {}
    assert made.network == "none"
    assert not made.capabilities | made.share | made.allow_syscalls  # type: ignore[operator]
    assert made.seccomp
    assert made.landlock
    assert not any(made.is_optional(name) for name in OPTIONAL)
    assert made.limits() == {resource.RLIMIT_CORE: (0, 0)}


def test_what_is_optional() -> None:
    optional = Policy(optional=["landlock", "cpu"])
    assert {name for name in OPTIONAL if optional.is_optional(name)} == {"landlock", "cpu"}
    required = Policy(require=["landlock", "cpu"])
    assert {name for name in OPTIONAL if required.is_optional(name)} == OPTIONAL - {
        "landlock",
        "cpu",
    }
    for made in (Policy(), optional, required, Policy(require=[])):
        assert not made.is_optional("namespaces")
        assert not made.is_optional("files")
    assert all(Policy(require=[]).is_optional(name) for name in OPTIONAL)


def test_limits_of_processes() -> None:
    made = Policy(rlimits={"nofile": 64, "stack": (1, 2), "core": -1}, file_size=1000, cpu_time=1.2)
    assert made.limits() == {
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_STACK: (1, 2),
        resource.RLIMIT_CORE: (-1, -1),
        resource.RLIMIT_FSIZE: (1000, 1000),
        resource.RLIMIT_CPU: (2, 3),  # first a signal that can be caught
    }


def test_entries_of_the_user_come_before_those_of_presets() -> None:
    made = Policy(system=True, files={"/tmp/": Directory(), "//etc//passwd": File(b"mine")})  # noqa: S108
    assert made.entries["tmp"] == Directory()
    assert made.entries["etc/passwd"] == File(b"mine")
    assert list(made.files) == ["/tmp/", "//etc//passwd"]  # noqa: S108


# --- a value --------------------------------------------------------------------------------------


def test_it_cannot_be_changed() -> None:
    env = {"A": "b"}
    made = Policy(env=env)
    with pytest.raises(AttributeError):
        made.uid = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        made.env["A"] = "c"  # type: ignore[index]
    env["A"] = "c"
    assert made.env == {"A": "b"}


@pytest.mark.parametrize("kind", [Policy, Sandbox])
def test_equality_and_hash(kind: type[Policy]) -> None:
    made = kind(**FULL)
    assert made == kind(**FULL)
    assert hash(made) == hash(kind(**FULL))
    # However the names were given.
    other = kind(
        **{**FULL, "share": ("uts", "ipc", "uts"), "uid_map": [[5, 100_000, 2], (0, 0, 1)]}
    )
    assert (made, hash(made)) == (other, hash(other))
    assert made != kind()
    assert len({made, other, kind()}) == 2


def test_a_sandbox_is_no_policy() -> None:
    assert Sandbox() != Policy()


@pytest.mark.parametrize("kind", [Policy, Sandbox])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickling(kind: type[Policy], protocol: int) -> None:
    made = kind(**FULL)
    again = pickle.loads(pickle.dumps(made, protocol))  # noqa: S301
    assert type(again) is kind
    assert again == made
    assert again.entries == made.entries
    assert dict(again.limits()) == dict(made.limits())


def test_paths_of_ours_mean_the_same_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another working directory, where it is unpickled or changed."""
    for name in ("here/data", "there/data"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    made = Policy(files={"/a": Bind("data"), "/b": Overlay(Path("data"))}, cgroup="group")
    pickled = pickle.dumps(made)
    monkeypatch.chdir(tmp_path / "there")
    here = str(tmp_path / "here")
    for again in (made, pickle.loads(pickled), made.replace(uid=5)):  # noqa: S301
        assert again.files == {"/a": Bind(f"{here}/data"), "/b": Overlay(f"{here}/data")}
        assert again.entries["a"] == Source(os.path.realpath(f"{here}/data"))
        assert again.cgroup == f"{here}/group"
    assert Policy(files={"/a": Bind(Path("data"))}) == Policy(files={"/a": Bind("data")})
    assert Policy(files={"/a": Bind("data")}) != Policy(files={"/a": Bind(f"{here}/data")})


def test_replace() -> None:
    made = Sandbox(**FULL)
    other = made.replace(uid_map=None, uid=7, files={})
    assert (other.uid, other.gid, other.hostname) == (7, 6, "box")
    assert "note" in made.entries
    assert "note" not in other.entries
    assert b":7:6:" in other.entries["etc/passwd"].data  # type: ignore[union-attr]
    assert made.replace() == made
    with pytest.raises(ValueError, match="uid_map must have 7 in it"):
        made.replace(uid=7)  # it is checked again


@examples
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "memory": st.integers(1, 1 << 50),
            "processes": st.integers(1, 1 << 20),
            "cpu": st.floats(0.01, 1000),
            "wall_time": st.floats(0.001, 1e6),
            "uid": st.integers(0, (1 << 32) - 2),
            "hostname": st.text(st.characters(exclude_characters="\0\n", codec="ascii"), min_size=1,
                                max_size=64),
            "share": st.sets(st.sampled_from(["ipc", "uts", "cgroup"])),
            "env": st.dictionaries(st.from_regex(r"[A-Z_]+", fullmatch=True),
                                   st.text(st.characters(exclude_characters="\0", codec="utf-8"))),
            "optional": st.sets(st.sampled_from(sorted(OPTIONAL))),
        },
    )
)  # fmt: skip
def test_round_trips(fields: dict[str, Any]) -> None:
    made = Policy(**fields)
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301
    assert made.replace() == made
    assert Policy(**made.fields()) == made
    assert hash(Policy(**made.fields())) == hash(made)


# --- sizes ----------------------------------------------------------------------------------------

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@examples
@given(st.integers(0, 1 << 60), st.sampled_from(sorted(UNITS)), st.sampled_from(["", "i"]),
       st.sampled_from(["", "B"]), st.sampled_from(["", " "]), st.booleans())  # fmt: skip
def test_sizes(number: int, unit: str, binary: str, b: str, space: str, lower: bool) -> None:
    text = f"{number}{space}{unit}{binary if unit else ''}{b}"
    assert parse_size(text.lower() if lower else text) == number * UNITS[unit]


@examples
@given(st.integers(0, 1 << 40))
def test_sizes_that_are_numbers(number: int) -> None:
    assert parse_size(number) == number == parse_size(str(number))


@examples
@given(st.integers(0, 10_000), st.integers(0, 999), st.sampled_from("KMGT"))
def test_parts_of_units(whole: int, thousandths: int, unit: str) -> None:
    exact = (whole * 1000 + thousandths) * UNITS[unit] // 1000
    assert parse_size(f"{whole}.{thousandths:03}{unit}") == exact


def test_parts_of_bytes() -> None:
    assert parse_size("1.5K") == 1536
    assert parse_size("2.0") == 2
    with pytest.raises(ValueError, match=r"no parts of bytes: '1\.5'"):
        parse_size("1.5")


@pytest.mark.parametrize("text", ["", "M", "-1M", "1,5M", "1e6", "64 MM", "64X", ".5M", "5.M", "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="a size is a number with K, M, G or T"):
        parse_size(text)


@pytest.mark.parametrize("value", [None, 1.5, b"64M", ["64M"]])
def test_what_is_not_even_text(value: Any) -> None:
    with pytest.raises(TypeError, match="a size is a whole number, or text such as '64M'"):
        parse_size(value)


# --- TOML -----------------------------------------------------------------------------------------


def load(directory: Path, text: str, kind: type[Policy] = Policy) -> Policy:
    path = directory / "policy.toml"
    path.write_text(text)
    return kind.load(path)


def test_toml(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "own.bpf").write_bytes(RETURN_ALLOW)
    text = """
        system = true
        cwd = "/space"
        uid = 5
        uid_map = [[5, 100000, 2], [0, 0, 1]]
        network = "host"
        share = ["ipc"]
        seccomp_filters = ["own.bpf"]
        memory = "1.5G"
        swap = "64 MiB"
        output_size = 1000
        file_size = "2k"
        cpu = 0.5
        wall_time = 2
        cgroup = "group"
        optional = ["landlock"]
        [env]
        LANG = "C.UTF-8"
        [rlimits]
        nofile = 64
        stack = [1, 2]
        [files."/data"]
        bind = "data"
        writable = true
        [files."/missing"]
        bind = "missing"
        missing_ok = true
        [files."/over"]
        overlay = "data"
        size = "1M"
        inodes = 50
        [files."/space"]
        tmpfs = "2M"
        mode = 0o1777
        [files."/any"]
        tmpfs = true
        [files."/dir"]
        directory = true
        mode = 0o700
        [files."/link"]
        symlink = "dir"
        [files."/note"]
        file = "héllo"
        mode = 0o640
        [files."/processes"]
        proc = true
        [files."/devices"]
        devices = true
        shm = "1M"
    """
    assert load(tmp_path, text, Sandbox) == Sandbox(
        system=True,
        cwd="/space",
        uid=5,
        uid_map=((5, 100_000, 2), (0, 0, 1)),
        network="host",
        share={"ipc"},
        seccomp_filters=[RETURN_ALLOW],
        memory=3 << 29,
        swap=64 << 20,
        output_size=1000,
        file_size=2048,
        cpu=0.5,
        wall_time=2,
        cgroup=str(tmp_path / "group"),
        optional=["landlock"],
        env={"LANG": "C.UTF-8"},
        rlimits={"nofile": 64, "stack": (1, 2)},
        files={
            "/data": Bind(str(tmp_path / "data"), writable=True),
            "/missing": Bind(str(tmp_path / "missing"), missing_ok=True),
            "/over": Overlay(str(tmp_path / "data"), 1 << 20, 50),
            "/space": Tmpfs(2 << 20, mode=0o1777),
            "/any": Tmpfs(),
            "/dir": Directory(0o700),
            "/link": Symlink("dir"),
            "/note": File("héllo".encode(), 0o640),
            "/processes": Proc(),
            "/devices": Devices(1 << 20),
        },
    )


def test_paths_begin_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at the working directory, however the file itself is named."""
    (tmp_path / "policies" / "data").mkdir(parents=True)
    (tmp_path / "policies" / "p.toml").write_text('[files."/data"]\nbind = "data"\n')
    monkeypatch.chdir(tmp_path)
    expected = os.path.realpath(tmp_path / "policies" / "data")
    for path in ("policies/p.toml", Path("policies/p.toml"), tmp_path / "policies" / "p.toml"):
        assert Policy.load(path).entries["data"].path == expected  # type: ignore[union-attr]


def test_an_empty_file(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Policy()


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("memory =", ValueError, "policy.toml: "),
        ("memroy = 5", ValueError, "the policy has no 'memroy'; was 'memory' meant?"),
        ("entries = {}", ValueError, "the policy has no 'entries'"),
        ("memory = 'much'", ValueError, "a size is a number with K, M, G or T: 'much'"),
        ("memory = 1.5", TypeError, "a size is a whole number, or text"),
        ("memory = true", TypeError, "memory must be a whole number, not True"),
        ("uid = 4294967295", ValueError, "uid must be 0 to"),
        ("uid_map = [[1, 2]]", TypeError, "uid_map must be an id, or triples of numbers"),
        ("uid_map = [1000]", TypeError, "uid_map must be an id, or triples of numbers"),
        ("env = 5", TypeError, "env must be a table, not 5"),
        ("files = ['/x']", TypeError, "files must be a table"),
        ("share = 'ipc'", TypeError, "share must be several names"),
        ("cgroup = 5", TypeError, "cgroup must be text, not 5"),
        ("seccomp_filters = 'x'", TypeError, "seccomp_filters must be several names"),
        ("files.'/x' = 5", ValueError, "'/x' must be a table with one of bind, overlay"),
        ("files.'/x' = {}", ValueError, "'/x' must be a table with one of bind, overlay"),
        ("files.'/x' = {proc = true, tmpfs = 5}", ValueError, "'/x' must be a table with one of"),
        ("files.'/x' = {bind = '/', wirtable = true}", ValueError, "was 'writable' meant?"),
        ("files.'/x' = {bind = '/', mode = 5}", ValueError, "'/x' has no 'mode'"),
        ("files.'/x' = {bind = true}", TypeError, "'/x': bind must be text, not True"),
        ("files.'/x' = {overlay = 5}", TypeError, "'/x': overlay must be text, not 5"),
        ("files.'/x' = {symlink = 5}", TypeError, "'/x': symlink must be text, not 5"),
        ("files.'/x' = {file = 5}", TypeError, "'/x': file must be text, not 5"),
        ("files.'/x' = {tmpfs = false}", ValueError, "'/x': size must be a positive number: False"),
        ("files.'/x' = {tmpfs = 0}", ValueError, "'/x': size must be a positive number: 0"),
        ("files.'/x' = {proc = false}", ValueError, "'/x': proc must be true, not False"),
        ("files.'/x' = {devices = 'all'}", ValueError, "'/x': devices must be true, not 'all'"),
        ("files.'/x' = {devices = true, shm = true}", ValueError, "'/x': shm must be a positive"),
        ("files.'/x' = {directory = true, mode = '7'}", ValueError, "'/x': mode must be permissi"),
    ],
)
def test_bad_toml(tmp_path: Path, text: str, kind: type[Exception], said: str) -> None:
    """It is said of which file, and what."""
    with pytest.raises(kind, match=said) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'policy.toml'}: ")


@pytest.mark.parametrize("content", [b"\xff", b"a = 1\0"])
def test_what_is_no_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"policy\.toml"):
        Policy.load(path)


def test_files_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Policy.load(tmp_path / "missing.toml")
    assert caught.value.filename == str(tmp_path / "missing.toml")
    with pytest.raises(FileNotFoundError) as caught:
        load(tmp_path, "seccomp_filters = ['missing.bpf']")
    assert caught.value.filename == str(tmp_path / "missing.bpf")
    with pytest.raises(FileNotFoundError) as caught:
        load(tmp_path, "[files.'/x']\nbind = 'missing'")
    assert caught.value.filename == str(tmp_path / "missing")


@examples
@given(
    st.dictionaries(
        st.sampled_from(["memory", "swap", "output_size", "file_size"]), st.integers(1, 1 << 50)
    ).filter(lambda sizes: "swap" not in sizes or "memory" in sizes)
)
def test_sizes_in_toml(sizes: Mapping[str, int]) -> None:
    whole = {name: f"{size}K" for name, size in sizes.items()}
    assert _from_toml(whole, "/") == {name: size << 10 for name, size in sizes.items()}
