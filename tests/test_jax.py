"""What JAX adds to the tests that all backends share: its own derivatives and its limits."""

import pytest
from cases import FORWARD_LAYOUTS, few_sizes
from test_values import Values

jax = pytest.importorskip("jax")


class TestJax(Values):
    mode = "JAX"
    sizes = few_sizes
    layouts = FORWARD_LAYOUTS
    bits_are_the_same = False
    writes_in_place = False
