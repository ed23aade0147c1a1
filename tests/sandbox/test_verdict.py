"""Verdicts and receipts as data."""

from __future__ import annotations

import base64
import json
import pickle
from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.sandbox import Protection, ProtectionError, Verdict
from ramet.sandbox._verdict import Reason, planned

examples = settings(max_examples=60, deadline=None)
RECEIPT = (
    Protection("network", "none", "applied", "CLONE_NEWNET"),
    Protection("memory", "1000", "degraded", "no cgroup"),
)


@pytest.mark.parametrize(
    ("reason", "code", "signal", "status"),
    [
        ("exited", 0, None, 0),
        ("exited", 3, None, 3),
        ("exited", 255, None, 255),
        ("signalled", None, 9, 137),
        ("signalled", None, 64, 192),
        *((reason, None, 9, 124) for reason in ("timeout", "cpu", "memory", "output")),
        ("cpu", None, 24, 124),
        ("start_failed", None, None, 125),
        ("raised", 1, None, 1),
    ],
)
def test_as_a_shell_has_it(
    reason: Reason, code: int | None, signal: int | None, status: int
) -> None:
    verdict = Verdict(reason=reason, exit_code=code, signal=signal)
    assert verdict.shell_status == status
    assert verdict.ok is bool(verdict) is (status == 0)


def test_raised_is_not_ok() -> None:
    """Whatever the exit code is."""
    assert not Verdict(reason="raised", exit_code=0)


def test_it_is_a_value() -> None:
    verdict = Verdict(reason="exited", exit_code=0, stdout=b"x", receipt=RECEIPT)
    assert verdict == pickle.loads(pickle.dumps(verdict))  # noqa: S301
    assert verdict != Verdict(reason="exited", exit_code=0, receipt=RECEIPT)
    with pytest.raises(AttributeError):
        verdict.exit_code = 1  # type: ignore[misc]


def test_json() -> None:
    verdict = Verdict(
        reason="signalled",
        signal=9,
        stdout=b"h\\u\n",
        stderr=b"\xff",
        stdout_truncated=True,
        receipt=RECEIPT,
    )
    content = json.loads(verdict.to_json())
    assert content.keys() == {*Verdict._fields}
    assert content["reason"] == "signalled"
    assert (content["exit_code"], content["signal"]) == (None, 9)
    assert content["stdout"] == "h\\u\n"
    assert base64.b64decode(content["stderr"]["base64"]) == b"\xff"
    assert content["stdout_truncated"] is True
    assert content["receipt"][1] == {
        "name": "memory",
        "requested": "1000",
        "state": "degraded",
        "how": "no cgroup",
    }
    assert "\n" not in verdict.to_json()
    assert json.loads(verdict.to_json(indent=2)) == content
    assert '\n  "reason"' in verdict.to_json(indent=2)


@examples
@given(st.binary())
def test_output_in_json(data: bytes) -> None:
    said = json.loads(Verdict(reason="exited", stdout=data).to_json())["stdout"]
    assert (base64.b64decode(said["base64"]) if isinstance(said, dict) else said.encode()) == data


class _Thing:
    def __repr__(self) -> str:
        return "a thing"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ({"a": [1, 2.5, "x", True]}, {"a": [1, 2.5, "x", True]}),
        ({"a": b"\xff"}, {"a": {"base64": "/w=="}}),
        (bytearray(b"x"), {"base64": "eA=="}),
        (memoryview(b"x"), {"base64": "eA=="}),
        ([array("i", [1, 2])], [[1, 2]]),
        ((1, 2), [1, 2]),
        ({1j}, "{1j}"),
        (_Thing(), "a thing"),
    ],
)
def test_values_in_json(value: Any, expected: Any) -> None:
    text = Verdict(reason="exited", exit_code=0, value=value).to_json()
    assert json.loads(text)["value"] == expected


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": -float("inf")}])
def test_numbers_that_json_does_not_have(value: Any) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(f"this is no JSON: {text}")

    json.loads(Verdict(reason="exited", value=value).to_json(), parse_constant=refuse)


def test_keys_that_json_does_not_have() -> None:
    text = Verdict(reason="exited", value={(1, 2): "x", 3: "y"}).to_json()
    assert json.loads(text)["value"] == {"(1, 2)": "x", "3": "y"}


def test_planned() -> None:
    assert [line.state for line in planned(RECEIPT)] == ["planned"] * 2
    assert [line._replace(state="applied") for line in planned(RECEIPT)] == [
        line._replace(state="applied") for line in RECEIPT
    ]
    assert planned([]) == ()


def test_protection_errors() -> None:
    error = ProtectionError("memory", "there is no cgroup")
    assert str(error) == "memory cannot be enforced: there is no cgroup"
    assert (error.name, error.reason) == ("memory", "there is no cgroup")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), again.name) == (ProtectionError, str(error), "memory")
