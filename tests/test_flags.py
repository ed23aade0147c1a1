"""The table of flags, and that the kernel that runs has the same rules."""

from __future__ import annotations

import errno
import itertools
import platform
import re
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ramet
from ramet import CloneFlags, _native, lowlevel
from ramet._flags import CLONE3_ONLY, RULES, Rule, spell

_F = CloneFlags
HEADER = Path("/usr/include/linux/sched.h")
CALLS = ["clone3", "clone"]
EXIT_SIGNALS = (0, int(signal.SIGCHLD))


# --- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", CloneFlags, ids=spell)
def test_facts(flag: CloneFlags) -> None:
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?", flag.since)
    assert flag.summary
    assert flag.bit_count() == 1
    assert spell(flag) == f"CLONE_{flag.name}"


@pytest.mark.parametrize("flags", [_F(0), _F.VM | _F.FS], ids=spell)
def test_facts_are_of_single_flags(flags: CloneFlags) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{spell(flags)} is not a single flag")):
        _ = flags.since
    with pytest.raises(ValueError, match=re.escape(f"{spell(flags)} is not a single flag")):
        _ = flags.summary


def test_values_are_the_headers() -> None:
    if not HEADER.exists():
        pytest.skip("no kernel headers")
    defined = re.findall(
        r"^#define\s+CLONE_(\w+)\s+(?:(0x[0-9a-f]+)U?L*|\(1ULL << (\d+)\))",
        HEADER.read_text(),
        re.MULTILINE | re.IGNORECASE,
    )
    values = {name: int(number, 16) if number else 1 << int(bit) for name, number, bit in defined}
    assert len(values) >= 20
    assert values == {name: CloneFlags[name].value for name in values}


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (0, "0"),
        (_F.VM | _F.VFORK, "CLONE_VM|CLONE_VFORK"),
        (_F.VM | 1 << 60, "CLONE_VM|0x1000000000000000"),
        (17, "0x11"),
        (_F.EMPTY_MNTNS, "CLONE_EMPTY_MNTNS"),
    ],
)
def test_spell(flags: int, text: str) -> None:
    assert spell(flags) == text


def test_flag_rules() -> None:
    for rule in RULES:
        for flag in CloneFlags:
            named = bool(flag & (rule.having | rule.lacking))
            assert (str(rule) in ramet.flag_rules(flag)) == named
            assert (spell(flag) in re.findall(r"CLONE_\w+", str(rule).split(":")[0])) == named
    assert ramet.flag_rules(_F.UNTRACED) == ()
    assert ramet.flag_rules(_F(0)) == ()
    both = ramet.flag_rules(_F.NEWPID | _F.IO)
    assert set(both) == {*ramet.flag_rules(_F.NEWPID), *ramet.flag_rules(_F.IO)}


# --- ramet refuses --------------------------------------------------------------------------------


# What clone() adds to the flags cannot be lacking in them.
_ADDED = _F.PIDFD


@pytest.mark.parametrize(
    "rule", [r for r in RULES if "clone3" in r.calls and not r.lacking & _ADDED], ids=str
)
def test_clone_names_the_broken_rule(rule: Rule) -> None:
    flags = _satisfied(rule.having, except_for=rule)
    if flags & rule.lacking:
        flags = rule.having
    options: dict[str, object] = {}
    if rule.exit_signal:
        options["exit_signal"] = signal.SIGCHLD
    with pytest.raises(ValueError, match="CLONE_") as caught:
        ramet.clone(_native.nothing, flags=flags, **options)  # type: ignore[arg-type]
    broken = [r for r in RULES if r.broken_by(flags, int(rule.exit_signal), "clone3")]
    assert rule in broken
    assert str(caught.value) == str(broken[0])


def test_clone_refuses_unknown_flags() -> None:
    for bit in (1 << 0, 1 << 6, 1 << 38, 1 << 63):
        with pytest.raises(ValueError, match=f"unknown clone flags: {bit:#x}"):
            ramet.clone(_native.nothing, flags=bit | _F.VM)


@pytest.mark.parametrize("exit_signal", [-1, 65, 1 << 40])
def test_clone_refuses_numbers_that_are_no_signals(exit_signal: int) -> None:
    with pytest.raises(ValueError, match=f"exit_signal must be 0 to 64, not {exit_signal}"):
        ramet.clone(_native.nothing, flags=_F.VM, exit_signal=exit_signal)


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        (_F.PARENT_SETTID, "ptid"),
        (_F.SETTLS, "tls"),
        (_F.INTO_CGROUP, "cgroup"),
        (_F.CHILD_SETTID, "ctid"),
        (_F.CHILD_CLEARTID, "ctid"),
    ],
)
def test_flags_that_need_a_parameter(flag: CloneFlags, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(spell(flag))} needs {name}$"):
        ramet.clone(_native.nothing, flags=flag | _F.VM)


def test_ctid_needs_a_flag() -> None:
    with pytest.raises(ValueError, match="ctid needs CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID"):
        ramet.clone(_native.nothing, flags=_F.VM, ctid=bytearray(4))


# --- the kernel refuses -------------------------------------------------------------------------
#
# Each question ends in an error, so that nothing starts. The last steps of copy_process
# (kernel/fork.c) are copy_thread and the pidfd; a request that has come so far breaks no rule.

_MEMORY = bytearray(4096)  # for a stack that nothing runs on
_STACK = _native.address(_MEMORY)
_NOWHERE = 1  # a pidfd cannot be stored there: EFAULT
_NO_THREAD_POINTER = 1 << 63  # arch_prctl(2): EPERM. In copy_thread, and for x86-64 only.
_EXCLUDE_PIDFD = _F.PARENT_SETTID | _F.DETACHED  # in clone(2)


def _companions(rule: Rule) -> CloneFlags:
    """The first flag that a rule is kept by; 0 if there is none."""
    return next(iter(rule.lacking), _F(0))


def _satisfied(flags: CloneFlags, except_for: Rule | None = None) -> CloneFlags:
    """Add what flags need, by rules that ask for another flag."""
    before = None
    while flags != before:
        before = flags
        for rule in RULES:
            if rule is not except_for and flags & rule.having == rule.having:
                flags |= _companions(rule)
    return flags


def _left_out(flag: CloneFlags, call: str) -> str:
    """Why the kernel cannot be asked about a flag."""
    if call == "clone" and flag & CLONE3_ONLY:
        return "clone has no such flag"
    refused = ramet.probe().refused.get(flag, "")
    return "" if flag == _F.DETACHED else refused


def _kernel_refuses(flags: CloneFlags, exit_signal: int, call: str) -> bool:
    """Ask. Of the flags of the question itself, PIDFD and SETTLS, the sets must be closed."""
    try:
        if call == "clone3":
            lowlevel.clone3(
                _native.nothing,
                0,
                flags=flags,
                pidfd=_NOWHERE,
                exit_signal=exit_signal,
                stack=_STACK,
                stack_size=len(_MEMORY),
                cgroup=0 if flags & _F.INTO_CGROUP else None,
            )
        else:
            top = _STACK + len(_MEMORY)
            tls = 0 if flags & _F.PIDFD else _NO_THREAD_POINTER
            lowlevel.clone(_native.nothing, 0, flags | exit_signal, top, _NOWHERE, tls)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return True
        expected = errno.EFAULT if flags & _F.PIDFD else errno.EPERM
        if error.errno != expected:
            pytest.skip(f"not allowed here: {error}")
        return False
    raise AssertionError(f"a child was started: {spell(flags)}")


def _questions(flags: CloneFlags, call: str) -> set[CloneFlags]:
    """The sets that tell about a set: each can be asked without starting anything."""
    if call == "clone3":
        return {flags | _F.PIDFD}
    questions = set()
    if not flags & _EXCLUDE_PIDFD or flags & _F.PIDFD:
        # Two rules of clone are about PIDFD itself, and are asked as they are.
        questions.add(flags | _F.PIDFD)
    if not flags & _F.PIDFD and platform.machine() == "x86_64":
        questions.add(flags | _F.SETTLS)
    if flags & _F.PIDFD and flags & _F.PARENT_SETTID:
        questions.add(flags)
    return questions


def _disagreement(flags: CloneFlags, exit_signal: int, call: str) -> str:
    """What table and kernel say of a set, if that differs."""
    broken = [rule for rule in RULES if rule.broken_by(flags, exit_signal, call)]
    if broken and all(rule.only_ramet for rule in broken):
        return ""
    if _kernel_refuses(flags, exit_signal, call) == bool(broken):
        return ""
    table = f"broken: {broken[0]}" if broken else "no rule is broken, the kernel says EINVAL"
    return f"{call}({spell(flags)}, exit signal {exit_signal}): {table}"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("flag", CloneFlags, ids=spell)
def test_pairs(call: str, flag: CloneFlags) -> None:
    """A flag with itself and each other: bare, and with all that either needs."""
    if why := _left_out(flag, call):
        pytest.skip(f"{spell(flag)} with {call}: {why}")
    others = [other for other in CloneFlags if not _left_out(other, call)]
    pairs = [flag | other for other in others]
    sets = {*pairs, *map(_satisfied, pairs)}
    questions = {question for flags in sets for question in _questions(flags, call)}
    asked = itertools.product(sorted(questions), EXIT_SIGNALS)
    assert [found for q, s in asked if (found := _disagreement(q, s, call))] == []


@pytest.mark.parametrize("call", CALLS)
def test_sets(call: str) -> None:
    """As above for sets of any size, in which few rules, or many, are broken."""
    known = [flag for flag in CloneFlags if not _left_out(flag, call)]
    one = st.sampled_from(known)

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.sets(one, max_size=8), st.sampled_from(EXIT_SIGNALS), st.booleans())
    def agree(chosen: set[CloneFlags], exit_signal: int, satisfied: bool) -> None:
        flags = _F(sum(chosen))
        for question in _questions(_satisfied(flags) if satisfied else flags, call):
            assert _disagreement(question, exit_signal, call) == ""

    agree()


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_every_rule_is_the_kernels(call: str, rule: Rule) -> None:
    """Each rule is broken alone, and kept once one of its flags is left out."""
    if rule.only_ramet:
        pytest.skip("ramet's own rule")
    if call not in rule.calls:
        pytest.skip(f"not a rule of {call}")
    for flag in rule.having | rule.lacking:
        if why := _left_out(flag, call):
            pytest.skip(f"{spell(flag)} with {call}: {why}")
    flags = rule.having if rule.lacking else _satisfied(rule.having)
    exit_signal = int(signal.SIGCHLD) if rule.exit_signal else 0
    for question in _questions(flags, call):
        broken = [r for r in RULES if r.broken_by(question, exit_signal, call)]
        assert rule in broken
        assert _kernel_refuses(question, exit_signal, call)
