"""What the native tests share."""

import pytest

from tests.native import toolchain


@pytest.fixture(scope="module", params=toolchain.TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    """Return each architecture that has a trampoline, in turn."""
    name: str = request.param
    return name
