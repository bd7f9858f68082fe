"""What MLX adds to the tests that all backends share: its limits."""

from typing import ClassVar

from cases import needs_library
from test_values import LibraryValues

pytestmark = needs_library("MLX")


class TestMlx(LibraryValues):
    mode = "MLX"
    narrowed: ClassVar = {"complex128": "complex64"}
