"""What PyTorch adds to the tests that all backends share: its own derivatives, and its compiler."""

import pytest
from cases import FORWARD_LAYOUTS, few_sizes
from test_values import Values

torch = pytest.importorskip("torch")


class TestPyTorch(Values):
    mode = "PYTORCH"
    sizes = few_sizes
    layouts = FORWARD_LAYOUTS
    bits_are_the_same = False
    writes_in_place = False
