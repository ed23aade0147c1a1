"""What a policy is compiled to, and its receipt: applied, degraded, or refused by name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from ramet import CloneFlags
from ramet.sandbox import (
    Bind,
    File,
    Protection,
    ProtectionError,
    Sandbox,
    _cgroup,
    _landlock,
    _seccomp,
    _tree,
)
from ramet.sandbox import _plan as plans
from ramet.sandbox._plan import make_plan
from ramet.sandbox._policy import OPTIONAL, Policy
from tests.waiting import children

NO_CGROUP = "there is no group"
ALWAYS = {"namespaces", "files", "capabilities"}
DEFAULT = {"network", "ipc", "uts", "cgroup_namespace", "seccomp", "landlock", "core"}
LIMITS: dict[str, dict[str, Any]] = {
    "memory": {"memory": 1 << 26},
    "swap": {"memory": 1 << 26},
    "cpu": {"cpu": 0.5},
    "processes": {"processes": 5, "uid_map": [(1000, 0, 1)]},  # user 0 outside
}


@pytest.fixture
def no_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cgroup, "find_parent", lambda *_: (None, NO_CGROUP))


@pytest.fixture
def a_cgroup(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(_cgroup, "find_parent", lambda *_: ("/a/group", ""))
    return "/a/group"


@pytest.fixture
def with_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_landlock, "abi", lambda: 5)


def lines_of(policy: Policy) -> dict[str, Protection]:
    return {line.name: line for line in make_plan(policy).receipt}


def without_libseccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise RuntimeError("there is no libseccomp")

    monkeypatch.setattr(_seccomp, "libseccomp", load)
    _seccomp._make.cache_clear()


def take_away(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Have a protection missing, by what it hangs on; the policy that asks for it."""
    if name in LIMITS:
        monkeypatch.setattr(_cgroup, "find_parent", lambda *_: (None, NO_CGROUP))
    elif name == "seccomp":
        without_libseccomp(monkeypatch)
    elif name == "landlock":
        monkeypatch.setattr(_landlock, "abi", lambda: 0)
    else:
        flag, _ = plans._NAMESPACES[name]
        monkeypatch.setitem(plans._NAMESPACES, name, (flag, "no-such-namespace"))
    return LIMITS.get(name, {})


# --- receipts -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("with_landlock")
def test_the_default() -> None:
    lines = lines_of(Policy())
    assert lines.keys() == ALWAYS | DEFAULT
    assert {line.state for line in lines.values()} == {"applied"}
    assert all(line.requested and line.how for line in lines.values())
    flags = make_plan(Policy()).flags
    for name in ("USER", "NS", "PID", "NET", "IPC", "UTS", "CGROUP"):
        assert flags & CloneFlags[f"NEW{name}"]


@pytest.mark.usefixtures("with_landlock")
@pytest.mark.parametrize(
    ("fields", "missing", "flag"),
    [
        ({"network": "host"}, "network", CloneFlags.NEWNET),
        ({"share": ["ipc"]}, "ipc", CloneFlags.NEWIPC),
        ({"share": ["uts"]}, "uts", CloneFlags.NEWUTS),
        ({"share": ["cgroup"]}, "cgroup_namespace", CloneFlags.NEWCGROUP),
        ({"seccomp": False}, "seccomp", None),
        ({"landlock": False}, "landlock", None),
    ],
)
def test_what_was_not_asked_for(
    fields: dict[str, Any], missing: str, flag: CloneFlags | None
) -> None:
    """It has no line."""
    plan = make_plan(Policy(**fields))
    assert {line.name for line in plan.receipt} == (ALWAYS | DEFAULT) - {missing}
    if flag is not None:
        assert not plan.flags & flag


@pytest.mark.parametrize("name", sorted(OPTIONAL))
def test_what_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error that names it, or a line that says so, if that is allowed."""
    fields = take_away(name, monkeypatch)
    others = OPTIONAL - {name}
    for policy in (Policy(optional=others, **fields), Policy(require=[name], **fields)):
        with pytest.raises(ProtectionError) as caught:
            make_plan(policy)
        assert caught.value.name == name
        assert str(caught.value).startswith(f"{name} cannot be enforced: ")
        assert "unless it is made optional" in caught.value.reason
    for policy in (Policy(optional=OPTIONAL, **fields), Policy(require=[], **fields)):
        line = lines_of(policy)[name]
        assert line.state == "degraded"
        assert line.how


@pytest.mark.usefixtures("no_cgroup", "with_landlock")
def test_nothing_is_started_without_what_is_required() -> None:
    before = children()
    sandbox = Sandbox(memory=1 << 26)
    for attempt in (
        lambda: sandbox.run(["true"]),
        lambda: sandbox.popen(["true"]),
        lambda: sandbox.receipt,
        sandbox.explain,
    ):
        with pytest.raises(ProtectionError, match="memory cannot be enforced") as caught:
            attempt()
        assert NO_CGROUP in caught.value.reason
    assert children() == before


def test_all_that_is_missing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {}
    for name in sorted(OPTIONAL):
        fields |= take_away(name, monkeypatch)
    lines = lines_of(Policy(require=[], **fields))
    assert {name for name, line in lines.items() if line.state == "degraded"} == OPTIONAL
    assert {name for name, line in lines.items() if line.state == "applied"} == {*ALWAYS, "core"}


def test_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    own = bytes.fromhex("06000000 0000ff7f")
    line = lines_of(Policy())["seccomp"]
    assert (line.requested, line.how) == ("default", "1 filter")
    both = Policy(allow_syscalls=["bpf", "acct"], deny_syscalls=["getpid"], seccomp_filters=[own])
    line = lines_of(both)["seccomp"]
    assert line.requested == "default, with acct, bpf, without getpid"
    assert line.how == "2 filters"
    alone = lines_of(Policy(seccomp=False, seccomp_filters=[own, own]))["seccomp"]
    assert (alone.requested, alone.how) == ("filters of the user's own", "2 filters")
    without_libseccomp(monkeypatch)
    half = [
        line
        for line in make_plan(Policy(seccomp_filters=[own], optional=["seccomp"])).receipt
        if line.name == "seccomp"
    ]
    assert [(line.requested, line.state) for line in half] == [
        ("default", "degraded"),
        ("filters of the user's own", "applied"),
    ]


def test_capabilities() -> None:
    assert lines_of(Policy())["capabilities"].requested == "none"
    two = lines_of(Policy(capabilities=["net_raw", "CAP_CHOWN"]))["capabilities"]
    assert two.requested == "CAP_CHOWN, net_raw"


@pytest.mark.parametrize(("version", "enough"), [(0, False), (1, False), (2, True), (7, True)])
def test_versions_of_landlock(monkeypatch: pytest.MonkeyPatch, version: int, enough: bool) -> None:
    monkeypatch.setattr(_landlock, "abi", lambda: version)
    line = lines_of(Policy(optional=["landlock"]))["landlock"]
    if enough:
        assert (line.state, line.how) == ("applied", f"ABI {version}")
    else:
        assert line.state == "degraded"
        assert f"this kernel has {version or 'none'}" in line.how


def test_limits_of_each_process() -> None:
    lines = lines_of(Policy(rlimits={"nofile": (64, 128)}, file_size=1000, cpu_time=1.5))
    assert (lines["nofile"].requested, lines["nofile"].how) == (
        "64",
        "RLIMIT_NOFILE for each process",
    )
    assert lines["fsize"].requested == "1000"
    assert lines["core"].requested == "0"
    assert lines["cpu_time"].requested == "1.5 s"
    assert "cpu" not in lines  # that is another


# --- limits of all together -----------------------------------------------------------------------

ALL: dict[str, Any] = {"memory": 1 << 26, "swap": 1000, "processes": 5, "cpu": 0.5}


def test_with_a_group(a_cgroup: str) -> None:
    plan = make_plan(Policy(**ALL, cpu_time=2))
    lines = {line.name: line for line in plan.receipt}
    for name, controller in _cgroup.CONTROLLERS.items():
        assert lines[name].state == "applied"
        assert lines[name].how == f"{controller} controller, {a_cgroup}"
    assert plan.limits.group == a_cgroup
    assert plan.limits.settings == _cgroup.settings(1 << 26, 1000, 6, 0.5)  # with the first process
    assert plan.limits.sampled == {"cpu_time"}
    assert "RLIMIT_NPROC" not in str(plan.program)


def test_the_controllers_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def find(controllers: set[str], given: object) -> tuple[str, str]:
        asked.append((controllers, given))
        return "/a/group", ""

    monkeypatch.setattr(_cgroup, "find_parent", find)
    for fields in ({}, {"memory": 1}, {"processes": 5, "cpu": 1}, {"cgroup": "/x"}):
        make_plan(Policy(**fields))
    assert asked == [({"memory"}, None), ({"pids", "cpu"}, None), (set(), "/x")]


@pytest.mark.usefixtures("no_cgroup")
def test_without_a_group() -> None:
    plan = make_plan(Policy(**ALL, require=[]))
    lines = {line.name: line for line in plan.receipt}
    assert {name: lines[name].state for name in _cgroup.CONTROLLERS} == {
        "memory": "degraded",
        "swap": "degraded",
        "processes": "applied",
        "cpu": "degraded",
    }
    assert all(NO_CGROUP in lines[name].how for name in ("memory", "swap", "cpu"))
    assert lines["processes"].how == "RLIMIT_NPROC in a user namespace of its own"
    assert (plan.limits.group, plan.limits.settings) == (None, {})
    assert plan.limits.sampled == {"memory"}


@pytest.mark.usefixtures("no_cgroup")
def test_where_processes_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is not said that they are."""
    monkeypatch.setattr(_tree, "is_visible", lambda: False)
    plan = make_plan(Policy(memory=1 << 26, cpu_time=1, require=[]))
    lines = {line.name: line for line in plan.receipt}
    assert lines["memory"].how == NO_CGROUP
    assert lines["cpu_time"].how == "RLIMIT_CPU for each process"
    assert plan.limits.sampled == frozenset()


@pytest.mark.usefixtures("no_cgroup")
@pytest.mark.parametrize("capabilities", [["setuid"], ["CAP_SETUID"]])
def test_who_can_become_another_user_is_not_counted(capabilities: list[str]) -> None:
    """RLIMIT_NPROC is of each user."""
    several: dict[str, Any] = {"processes": 5, "uid_map": [(1000, 100_000, 1), (0, 100_001, 1)]}
    with pytest.raises(ProtectionError, match="program can become several"):
        make_plan(Policy(capabilities=capabilities, **several))
    for policy in (
        Policy(processes=5, capabilities=capabilities),
        Policy(processes=5, capabilities=capabilities, uid_map=[(1000, 100_000, 1)]),
        Policy(**several),
    ):
        assert lines_of(policy)["processes"].state == "applied"


@pytest.mark.usefixtures("no_cgroup")
def test_a_group_that_was_named_is_never_optional() -> None:
    with pytest.raises(ProtectionError) as caught:
        make_plan(Policy(cgroup="/x", require=[]))
    assert (caught.value.name, caught.value.reason) == ("cgroup", NO_CGROUP)


# --- the program ----------------------------------------------------------------------------------


def test_explain(tmp_path: Path) -> None:
    """All steps, readable, with no secret in them, and nothing started."""
    before = children()
    sandbox = Sandbox(
        files={"/data": Bind(tmp_path), "/key": File(b"s3cret")},
        env={"TOKEN": "s3cret"},
        hostname="box",
        rlimits={"nofile": 64},
        landlock=False,
    )
    said = sandbox.explain()
    assert children() == before
    for step in (
        f'"{tmp_path}"',
        'sethostname("box"',
        "pivot_root",
        "prctl(PR_SET_NO_NEW_PRIVS",
        "RLIMIT_NOFILE",
        "execveat",
    ):
        assert step in said, said
    assert "s3cret" not in said
    assert said.count("\n") > 20
    # In the order that makes it hold.
    order = [said.index(step) for step in ("pivot_root", "NO_NEW_PRIVS", "execveat")]
    assert order == sorted(order)
    assert sandbox.explain() == said


def test_it_is_compiled_once_for_each_user_and_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = Sandbox()
    plan = sandbox._plan()
    assert sandbox._plan() is plan
    assert sandbox._plan((5,)) is not plan
    assert sandbox._plan((5,)) is sandbox._plan((5,))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert sandbox._plan() is not plan


@pytest.mark.parametrize("targets", [(), (3,), (5, 100), tuple(range(3, 60))])
def test_descriptors(targets: tuple[int, ...]) -> None:
    """Those of the program come last, above all that it is given; all else is closed."""
    plan = make_plan(Policy(), targets)
    highest = max((2, *targets))
    assert plan.init_args == ("ramet-init", str(highest + 1), str(highest + 2), "0")
    said = str(plan.program)
    lowest = {int(number) for number in re.findall(r"F_DUPFD_CLOEXEC, (\d+)", said)}
    assert len(lowest) == 1
    assert min(lowest) > highest + 3 - 1
    for target in (0, 1, 2, *targets):
        assert re.search(rf"dup[23]\([^,]+, {target}\b", said), said
    assert "close_range" in said


def test_receipts_of_runs() -> None:
    """The same lines as the sandbox has before."""
    sandbox = Sandbox(system=True, optional=["landlock"])
    verdict = sandbox.run(["true"])
    assert verdict.receipt == sandbox.receipt
    failed = sandbox.run(["no-such-program"])
    assert [line.name for line in failed.receipt] == [line.name for line in sandbox.receipt]
    assert {line.state for line in failed.receipt} == {"planned"}
