"""The state of the host, as far as a sandbox could change it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.waiting import children


def host_state() -> dict[str, object]:
    """Mounts, our cgroups, children, descriptors and privileges, and the host's name."""
    mounts = Path("/proc/self/mountinfo").read_text()
    fields = [line.split() for line in mounts.splitlines()]
    trees = [each[4] for each in fields if each[each.index("-") + 1] == "cgroup2"]
    ours = f"/ramet-{os.getpid()}-"  # others may have theirs
    groups = [sorted(name for name, _, _ in os.walk(tree) if ours in name) for tree in trees]
    return {
        "mounts": mounts,
        "cgroups": groups,
        "children": children(),
        "descriptors": _descriptors(),
        "name": os.uname().nodename,
        "status": _status(),
    }


def _descriptors() -> set[tuple[str, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return found


def _status() -> list[str]:
    """What the kernel says of our privileges, and of the memory: whether it may be traced."""
    kept = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "CoreDumping", "SigBlk")
    lines = Path("/proc/self/status").read_text().splitlines()
    return [line for line in lines if line.startswith(kept)]


@contextmanager
def unchanged() -> Iterator[None]:
    """Check that all is as before at the end of the block."""
    before = host_state()
    yield
    after = host_state()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, [(before[name], after[name]) for name in changed]
