"""Presets: what they show of the system and of Python, and nothing else."""

from __future__ import annotations

import json
import os
import site
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from ramet.sandbox import Bind, Devices, File, Proc, Sandbox, Symlink, Tmpfs
from ramet.sandbox._presets import basic_files, network_files, python_files, system_files
from ramet.sandbox._root import Entry, check

SECRETS = ("/root", "/home", "/etc/shadow", "/etc/ssh", "/var", "/run", "/boot", "/srv", "/sys")


def inside(sandbox: Sandbox, code: str) -> Any:
    """Run Python code in a sandbox; what it writes as JSON."""
    verdict = sandbox.run([sys.executable, "-c", code])
    assert verdict.ok, (verdict, verdict.stderr.decode())
    return json.loads(verdict.stdout)


def text(entry: Entry) -> str:
    assert isinstance(entry, File)
    return entry.data.decode()


# --- the entries ----------------------------------------------------------------------------------


def test_names_for_the_ids() -> None:
    files = basic_files(1000, 100, "box")
    assert text(files["/etc/passwd"]).splitlines()[1] == "user:x:1000:100::/tmp:/bin/sh"
    assert text(files["/etc/group"]).splitlines() == ["root:x:0:", "user:x:100:"]
    assert "127.0.0.1 localhost box" in text(files["/etc/hosts"])
    root = basic_files(0, 0, "box")
    assert text(root["/etc/passwd"]).splitlines() == ["root:x:0:0::/tmp:/bin/sh"]
    assert text(root["/etc/group"]).splitlines() == ["root:x:0:"]


def test_basic_files() -> None:
    files = basic_files(1000, 1000, "box")
    assert (files["/proc"], files["/dev"]) == (Proc(), Devices())
    assert files["/tmp"] == Tmpfs(mode=0o1777)  # noqa: S108
    binds = {path: entry for path, entry in files.items() if isinstance(entry, Bind)}
    assert binds
    # As they are here, and no error where they are not.
    assert all(entry == Bind(path, missing_ok=True) for path, entry in binds.items())


@pytest.mark.parametrize("make", [system_files, python_files, network_files])
def test_nothing_can_be_written_to(make: type[dict[str, Entry]]) -> None:
    entries = make()
    assert entries
    assert all(
        isinstance(entry, Symlink) or (isinstance(entry, Bind) and not entry.writable)
        for entry in entries.values()
    )
    check(entries)


def test_directories_are_links_where_they_are_here() -> None:
    for path, entry in system_files().items():
        if os.path.islink(path):
            assert entry == Symlink(os.readlink(path))
        else:
            assert entry == Bind(path)


def test_python_alone_has_no_programs() -> None:
    """Of the system, just libraries, wherever Python itself is."""
    assert not {"/usr", "/usr/local", "/usr/bin", "/bin", "/"} & python_files().keys()


@pytest.mark.parametrize("prefix", ["/usr", "/usr/local"])
def test_python_of_the_system(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """Its prefix has more in it than Python: the interpreter alone is shown, and libraries."""
    for name in ("prefix", "exec_prefix", "base_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, name, prefix)
    files = python_files()
    assert prefix not in files
    assert files[os.path.abspath(sys.executable)] == Bind(os.path.abspath(sys.executable))
    assert files[os.path.realpath(sys.executable)] == Bind(os.path.realpath(sys.executable))


def test_packages_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(tmp_path))
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    assert str(tmp_path) in python_files()
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    assert str(tmp_path) not in python_files()


def test_nothing_comes_twice() -> None:
    """No directory is shown that is in another one that is; the interpreter may be, as a link."""
    shown = [path for path, entry in python_files().items() if isinstance(entry, Bind)]
    for path in filter(os.path.isdir, shown):
        assert not [other for other in shown if path != other and path.startswith(f"{other}/")]


# --- their effect ---------------------------------------------------------------------------------


def test_system() -> None:
    script = "ls / /etc; id -un; cat /etc/group; touch /tmp/x /dev/shm/x && ls -d /proc/1; hostname"
    verdict = Sandbox(system=True, hostname="box").run(["sh", "-c", script])
    assert verdict.ok, verdict.stderr.decode()
    lines = verdict.stdout.decode().split()
    assert {"user", "root:x:0:", "user:x:1000:", "/proc/1", "box"} <= {*lines}
    verdict = Sandbox(system=True).run(["ls", "-d", *SECRETS])
    assert verdict.stdout == b""
    assert verdict.exit_code == 2


@pytest.mark.parametrize("system", [False, True])
def test_python(system: bool) -> None:
    """The interpreter, its standard library, and packages that are installed."""
    code = (
        "import json, os, ssl, sqlite3, sys, hypothesis, ramet, numpy\n"
        f"secrets = {SECRETS}\n"
        "print(json.dumps([sys.prefix, hypothesis.__file__, int(numpy.arange(4).sum()),"
        "[path for path in secrets if os.path.exists(path)], os.path.exists('/bin/sh')]))"
    )
    shown = {part for path in python_files() for part in SECRETS if path.startswith(f"{part}/")}
    prefix, file, total, seen, has_shell = inside(Sandbox(python=True, system=system), code)
    assert (prefix, file, total) == (sys.prefix, hypothesis.__file__, 6)
    assert {*seen} == shown  # the interpreter itself may be in one of them
    assert has_shell is system


def test_python_sees_nothing_beside_it() -> None:
    sandbox = Sandbox(python=True)
    code = "import json, os, sys; print(json.dumps(os.listdir(os.path.dirname(sys.prefix))))"
    parent = f"{os.path.dirname(sys.prefix).rstrip('/')}/"
    paths = [f"/{path}" for path in sandbox.entries]
    shown = {path.removeprefix(parent).split("/")[0] for path in paths if path.startswith(parent)}
    assert {*inside(sandbox, code)} == shown


def test_a_network() -> None:
    """What finds hosts by their names is there with a network only; hosts is ours then."""
    script = ["sh", "-c", "ls /etc/resolv.conf /etc/services; cat /etc/hosts"]
    without = Sandbox(system=True).run(script).stdout.decode()
    assert without == "127.0.0.1 localhost sandbox\n::1 localhost\n"
    there = [path for path in network_files() if os.path.exists(path)]
    with_network = Sandbox(system=True, network="host").run(["ls", *there])
    assert with_network.stdout.decode().split() == sorted(there)
    if "/etc/hosts" in there:
        hosts = Sandbox(system=True, network="host").run(["cat", "/etc/hosts"])
        assert hosts.stdout == Path("/etc/hosts").read_bytes()
