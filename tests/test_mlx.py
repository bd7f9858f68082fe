"""What MLX adds to the tests that all backends share: its limits."""

from typing import ClassVar

import pytest
from cases import FORWARD_LAYOUTS, few_sizes
from test_values import Values

mlx = pytest.importorskip("mlx")


class TestMlx(Values):
    mode = "MLX"
    sizes = few_sizes
    layouts = FORWARD_LAYOUTS
    bits_are_the_same = False
    writes_in_place = False
    narrowed: ClassVar = {"complex128": "complex64"}
