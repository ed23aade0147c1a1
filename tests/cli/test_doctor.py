"""``ramet doctor``: as whoever runs this, as an ordinary user, and where nothing is allowed."""

from __future__ import annotations

import json
import os
import sys

import pytest

import ramet
from ramet import CloneFlags
from ramet._cli.doctor import Check
from tests.cli.conftest import Command
from tests.isolated import run_python

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs privileges to be somebody else")

_SHOWN = "import sys; from ramet._cli import main; sys.exit(main(['doctor', '--json']))"


def _checks(text: str) -> dict[str, Check]:
    groups = json.loads(text)["checks"].values()
    return {each["name"]: Check(**each) for group in groups for each in group}


def test_text(command: Command) -> None:
    done = command("doctor")
    assert done.status == 0, done.stdout
    assert "  yes  ramet run -- true: in " in done.stdout
    assert done.stdout.endswith("A sandbox with all its protections can be had here.\n")
    assert done.stderr == ""


def test_json(command: Command) -> None:
    done = command("doctor", "--json")
    assert json.loads(done.stdout)["sandbox"]
    checks = _checks(done.stdout)
    assert all(check.ok for check in checks.values() if check.needed)
    assert all(check.detail or check.advice for check in checks.values() if not check.ok)
    support = ramet.probe()
    for flag in (CloneFlags.AUTOREAP, CloneFlags.PIDFD_AUTOKILL):
        assert checks[f"CLONE_{flag.name}"].ok == (flag in support.flags)


def test_as_an_ordinary_user(as_nobody: list[str]) -> None:
    done = run_python(_SHOWN, before=as_nobody)
    assert all(check.ok for check in _checks(done.stdout).values() if check.needed)


def test_where_user_namespaces_are_forbidden() -> None:
    """As by an administrator, in a user namespace that this is the root of."""
    reader, writer = os.pipe()
    with open(reader) as file:
        child = ramet.spawn(
            [sys.executable, "-c", _SHOWN],
            fds={1: writer},
            flags=CloneFlags.NEWUSER,
            uid_map=0,
            gid_map=0,
            before_exec=lambda program: program.write_file(
                "/proc/sys/user/max_user_namespaces", b"0"
            ),
        )
        os.close(writer)
        with child:
            said = file.read()
            assert child.wait().code == 1
    assert not json.loads(said)["sandbox"]
    check = _checks(said)["user namespaces"]
    assert not check.ok
    assert "max_user_namespaces forbids it" in check.detail
    assert check.advice == "sysctl user.max_user_namespaces=10000"


def test_in_a_sandbox(command: Command) -> None:
    """It can be asked there, and gives the reason why there is no other one in it."""
    done = command("run", "--python", "--", "python", "-m", "ramet", "doctor", "--json")
    assert done.status == 1
    assert not json.loads(done.stdout)["sandbox"]
    assert "Operation not permitted" in _checks(done.stdout)["user namespaces"].detail
    told = command("run", "--python", "--", "python", "-m", "ramet", "run", "--", "true")
    assert told.status == 125
    assert told.stderr.endswith("; see ramet doctor\n")
