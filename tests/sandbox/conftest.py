"""What is checked around all tests of sandboxes."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.sandbox.hoststate import unchanged


@pytest.fixture(scope="module", autouse=True)
def host_as_before() -> Iterator[None]:
    """No test of a module changes the host: mounts, cgroups, processes, privileges."""
    gc.collect()
    with unchanged():
        yield
        gc.collect()
