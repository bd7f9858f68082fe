"""What MLX adds to the tests that all backends share: its limits."""

from typing import ClassVar

from cases import FORWARD_LAYOUTS, few_sizes, needs_library
from test_values import Values

pytestmark = needs_library("MLX")


class TestMlx(Values):
    mode = "MLX"
    sizes = few_sizes
    layouts = FORWARD_LAYOUTS
    bits_are_the_same = False
    narrowed: ClassVar = {"complex128": "complex64"}
