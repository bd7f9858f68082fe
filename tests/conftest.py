import pytensor
import pytest


@pytest.fixture(autouse=True)
def _a_rewrite_that_fails_is_an_error():
    """PyTensor would print it and go on without the rewrite."""
    with pytensor.config.change_flags(on_opt_error="raise"):
        yield
