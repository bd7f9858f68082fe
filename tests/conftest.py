import os

# Its compiler takes PyTorch seconds for each shape: test_pytorch.py turns it on for some.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
# Of JAX most of the time is XLA's, on loops that run once.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import pytensor
import pytest


@pytest.fixture(autouse=True)
def _a_rewrite_that_fails_is_an_error():
    """PyTensor would print it and go on without the rewrite."""
    with pytensor.config.change_flags(on_opt_error="raise"):
        yield


def pytest_generate_tests(metafunc):
    """Give a test of `layout` those of its class."""
    if "layout" in metafunc.fixturenames:
        metafunc.parametrize("layout", metafunc.cls.layouts, ids=str)
