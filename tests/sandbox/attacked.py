"""What is attacked, and all attacks by one user, from inside and outside.

As a program, which does without pytest, it prints as JSON what came of each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ramet import _names
from ramet._syscalls import NUMBERS
from ramet.sandbox import Bind, File, Sandbox, Tmpfs
from ramet.sandbox._root import Entry
from tests.sandbox import attacks
from tests.sandbox.attacks import HOST, NAMESPACE, PROBES, ROOT, SECRET, UNGUARDED, Targets
from tests.sandbox.hoststate import unchanged

attacks.numbers.update(NUMBERS)
NOBODY = 65534
UIDS = (1000, 0)
INSIDE = tuple(f"a sandbox with uid {uid}" for uid in UIDS)
PROGRAM = "/attacks.py"

Outcomes = dict[str, dict[str, str]]
IS_ROOT = os.geteuid() == 0
ATTACKER: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if IS_ROOT else {}
"""Arguments of subprocess.Popen for the ids that a sandbox's user has outside."""


@dataclass(frozen=True)
class Place:
    """Where attacks come from."""

    targets: Targets
    directory: Path
    given: Path
    python: str

    def outside(self, names: list[str], *before: str, **identity: Any) -> dict[str, str]:
        """Attack from a process of the host that has a descriptor that it should not have."""
        directory = os.open(self.directory, os.O_RDONLY)
        order = attacks.command(names, self.targets)
        with self.given.open("rb") as stdin:
            done = subprocess.run(
                [*before, self.python, "-I", "-S", f"{self.directory}{PROGRAM}", order],
                stdin=stdin,
                stdout=subprocess.PIPE,
                pass_fds=[directory],
                timeout=60,
                check=True,
                **identity,
            )
        os.close(directory)
        return _outcomes(done.stdout)

    def inside(self, names: list[str], **policy: Any) -> dict[str, str]:
        """Attack from a sandbox, while we have descriptors that others would inherit."""
        files: dict[str, Entry] = {
            PROGRAM: File(Path(attacks.__file__).read_bytes()),
            "/readonly": Bind(self.targets.readonly),
            "/space": Tmpfs(attacks.MOST_BYTES, attacks.MOST_FILES, mode=0o1777),
        }
        theirs = replace(self.targets, readonly="/readonly", space="/space", init=1)
        if self.targets.setuid:
            files["/setuid"] = Bind(self.targets.setuid)
            theirs = replace(theirs, setuid="/setuid")
        sandbox = Sandbox(
            python=True, files=files, processes=attacks.MOST_PROCESSES, wall_time=60, **policy
        )
        order = attacks.command(names, theirs)
        directory = os.open(self.directory, os.O_RDONLY)
        os.set_inheritable(directory, True)
        with self.given.open("rb") as stdin:
            verdict = sandbox.run([sys.executable, "-I", "-S", PROGRAM, order], stdin=stdin)
        os.close(directory)
        assert verdict.ok, verdict
        return _outcomes(verdict.stdout)


def _outcomes(said: bytes) -> dict[str, str]:
    found: dict[str, str] = json.loads(said)
    return found


@contextmanager
def place(python: str, setuid: str = "", *, harmless: bool = False) -> Iterator[Place]:
    """Make what is attacked.

    Args:
        python: an interpreter that the attackers can run.
        setuid: as of `Targets`.
        harmless: no attack may succeed, so all must be as it was at the end.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        shutil.copy(attacks.__file__, f"{name}{PROGRAM}")
        (directory / "secret").write_text(SECRET)
        for each in ("readonly", "space", "sockets"):
            (directory / each).mkdir()
            (directory / each).chmod(0o777)
        for how in attacks.CHANGES:
            own(directory / "readonly" / how, "ours")
        own(directory / "given", "ours")
        before = tree(directory)
        path = f"{name}/sockets/socket"
        order = json.dumps({"victim": [path, directory.name], "numbers": attacks.numbers})
        victim = subprocess.Popen(
            [python, "-I", "-S", f"{name}{PROGRAM}", order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **ATTACKER,
        )
        init = subprocess.Popen(["/bin/sleep", "1000"], **ATTACKER)
        assert victim.stdout is not None
        facts = json.loads(victim.stdout.readline())
        targets = Targets(
            secret=f"{name}/secret",
            readonly=f"{name}/readonly",
            space=f"{name}/space",
            setuid=setuid,
            name=directory.name,
            path=path,
            init=init.pid,
            **facts,
        )
        try:
            yield Place(targets, directory, directory / "given", python)
            if harmless:
                assert init.poll() is None
                assert victim.poll() is None
        finally:
            init.kill()
            init.wait()
            signals, _ = victim.communicate()
        if harmless:
            assert int(signals) == 0
            (directory / "sockets" / "socket").unlink()
            assert tree(directory) == before


def own(file: Path, text: str) -> None:
    """Make a file that the attacker may do with as he likes."""
    file.write_text(text)
    file.chmod(0o666)
    if IS_ROOT:
        os.chown(file, NOBODY, NOBODY)


def tree(directory: Path) -> dict[str, object]:
    """All that can be seen of files: contents, modes, times."""
    return {
        str(path): (
            (stat := path.lstat()).st_mode,
            stat.st_mtime_ns if path.is_file() else 0,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in directory.rglob("*")
    }


def _of(where: str) -> list[str]:
    return [name for name, probe in PROBES.items() if probe.where == where]


def attack(python: str, setuid: str) -> Outcomes:
    """Make all attacks, from everywhere."""
    found: Outcomes = {}
    with suppress(OSError):  # a kernel without keys
        attacks.have_a_key()
    for where, uid in zip(INSIDE, UIDS, strict=True):
        with place(python, setuid, harmless=True) as here, unchanged():
            found[where] = here.inside(list(PROBES), uid=uid, gid=uid)
    with place(python, setuid) as here:
        found[HOST] = here.outside(_of(HOST), **ATTACKER)
        found[ROOT] = here.outside(_of(ROOT)) if IS_ROOT else {}
        unshare = ["unshare", "--user", "--map-root-user", "--mount"]
        found[NAMESPACE] = here.outside(_of(NAMESPACE), *unshare, **ATTACKER)
        found[UNGUARDED] = here.inside(
            _of(UNGUARDED),
            uid=0,
            gid=0,
            seccomp=False,
            landlock=False,
            capabilities=_names.CAPABILITIES,
        )
    return found


def told(function: Callable[[], None]) -> str:
    """What is wrong: the traceback, or nothing."""
    try:
        with unchanged():
            function()
    except Exception:  # noqa: BLE001 - it is told
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    print(json.dumps(attack(*sys.argv[1:])))
