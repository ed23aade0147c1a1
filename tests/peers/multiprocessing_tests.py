"""CPython's tests of multiprocessing, with ramet's context, where processes can import them."""

from test._test_multiprocessing import (  # type: ignore[import-not-found]
    install_tests_in_module_dict,
)

install_tests_in_module_dict(globals(), "ramet")
