"""``ramet explain``: the receipt, and the program."""

from __future__ import annotations

import json

from ramet.sandbox import Sandbox, Tmpfs
from tests.cli.conftest import Command

OPTIONS = ("--no-system", "--tmpfs", "/x", "--no-landlock", "--hostname", "box")


def test_text(command: Command) -> None:
    done = command("explain", *OPTIONS)
    assert done.status == 0
    receipt, _, steps = done.stdout.partition("How it is made:\n")
    assert "  uts  " in receipt
    assert "landlock" not in receipt
    assert 'sethostname("box", 3)' in steps
    made = Sandbox(files={"/x": Tmpfs()}, hostname="box", landlock=False)
    assert steps.split() == made.explain().split()


def test_json(command: Command) -> None:
    done = command("explain", "--json", *OPTIONS, "--", "true")
    content = json.loads(done.stdout)
    assert {"name": "core", "requested": "0"}.items() <= content["receipt"][-1].items()
    assert any("execveat" in step for step in content["steps"])


def test_what_cannot_be_had(command: Command) -> None:
    done = command("explain", "--cgroup", "/no/such")
    assert done.status == 125
    assert done.stderr.startswith("ramet explain: cgroup cannot be enforced")
