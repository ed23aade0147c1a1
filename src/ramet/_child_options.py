"""The options that a Python function's child can have, for what passes them on to a zygote."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TypedDict

from ramet._clone import HasFileno
from ramet._program import Program
from ramet._spawn import IdMap


class ChildOptions(TypedDict, total=False):
    """Those of `ramet.Zygote.using`, but for descriptors and the timeout."""

    flags: int
    uid_map: IdMap | None
    gid_map: IdMap | None
    cwd: str | os.PathLike[str] | None
    env: Mapping[str, str] | None
    rlimits: Mapping[int, int | tuple[int, int]] | None
    umask: int
    user: int | str | None
    group: int | str | None
    extra_groups: Iterable[int | str] | None
    nice: int | None
    affinity: Iterable[int] | None
    scheduler: tuple[int, int] | None
    ioprio: tuple[int, int] | None
    start_new_session: bool
    process_group: int | None
    no_new_privs: bool
    hostname: str | None
    cgroup: int | str | os.PathLike[str] | HasFileno | None
    before_run: Callable[[Program], object] | None
