"""What the documentation shows is run, and what is generated is up to date."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT, check_output, run

import pytest

from ramet import Sandbox
from tests.isolated import run_python

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _examples() -> list[tuple[str, str]]:
    return [
        (f"{page.name}-{number}", code)
        for page in PAGES
        for number, code in enumerate(
            re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
        )
    ]


@pytest.mark.parametrize("code", [pytest.param(c, id=name) for name, c in _examples()])
def test_example(code: str) -> None:
    by_dask = "from distributed import" in code
    if by_dask:
        pytest.importorskip("distributed", reason="not installed: pyproject.toml says where it is")
    run_python(code, dev=not by_dask)


def test_there_are_examples() -> None:
    assert any(name.startswith("README") for name, _ in _examples())


def test_sessions(tmp_path: Path) -> None:
    """The commands that are shown write what is shown; "..." is anything."""
    text = "".join((ROOT / name).read_text() for name in ("docs/command.md", "README.md"))
    (policy,) = re.findall(r"^```toml\n(.*?)^```", text, re.M | re.S)
    (tmp_path / "policy.toml").write_text(policy)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    sessions = re.findall(r"^```console\n(.*?)^```", text, re.M | re.S)
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", "".join(sessions), re.M):
        done = run(  # noqa: S602 - by a shell, as is shown
            command,
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdout=PIPE,
            stderr=STDOUT,
            text=True,
            check=False,
        )
        pattern = re.escape(expected.strip()).replace(re.escape("..."), ".*")
        assert re.fullmatch(pattern, done.stdout.strip(), re.S), f"{command}\n{done.stdout}"


def test_the_policy(tmp_path: Path) -> None:
    """That of docs/sandbox.md; the other one is a part of the sessions."""
    (policy,) = re.findall(
        r"^```toml\n(.*?)^```", (ROOT / "docs/sandbox.md").read_text(), re.M | re.S
    )
    (tmp_path / "policy.toml").write_text(policy)
    tmp_path.joinpath("work").mkdir()
    with Sandbox.load(tmp_path / "policy.toml") as box:
        assert box.call(os.listdir, "/data") == []
        assert box.call(os.path.getsize, "/etc/note") == len("a text")


def test_flags_page_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "docs/generate.py"))["flags_page"]()
    assert (ROOT / "docs/flags.md").read_text() == page, "run: make docs"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_spawning(capfd: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples/spawning.py"), run_name="__main__")
    output = capfd.readouterr().out
    assert "killed by SIGXCPU" in output or "killed by SIGKILL" in output
    assert 'chdir("/no/such/directory") failed: ENOENT' in output
    for part in ("user 0, pid 1, ", "ramet-example-"):
        assert part in output or "not here: " in output


def test_quickstart(capfd: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples/quickstart.py"), run_name="__main__")
    output = capfd.readouterr().out
    for expected in (
        "found 17984 primes",
        "exited with 84",
        "returned 92",
        "without CLONE_SIGHAND",
    ):
        assert expected in output


def test_sandboxing() -> None:
    example = str(ROOT / "examples/sandboxing.py")
    output = check_output([sys.executable, "-X", "dev", "-W", "error", example], text=True)
    reasons = re.findall(r"^  verdict: (\w+)", output, re.M)
    assert reasons == ["exited", "exited", "timeout", "memory", "exited"]
    assert "user 1000, host sandbox, process 2" in output
    assert "it has returned (2.0, 0.0)" in output
    assert "mount: Operation not permitted" in output
    assert "IT WORKED" not in output


def test_sandboxing_where_it_cannot_be() -> None:
    inner = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    example = [sys.executable, str(ROOT / "examples/sandboxing.py")]
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", inner, "sh", *example]
    done = run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("There can be no sandbox here: ")
    assert "max_*_namespaces" in done.stderr


def test_workers() -> None:
    example = str(ROOT / "examples/workers.py")
    output = check_output([sys.executable, "-X", "dev", "-W", "error", example], text=True)
    assert "A pool: ['1', '3/2', '11/6', '7381/2520']" in output
    assert "A loader: [0, 1, 4, 9] [16, 25, 36, 49] [64, 81]" in output
