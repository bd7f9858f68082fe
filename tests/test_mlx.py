"""What MLX adds to the tests that all backends share: its limits."""

from typing import ClassVar

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import needs_library
from test_values import LibraryValues

from blocksparse_ops import sparse_block_dot

pytestmark = needs_library("MLX")


class TestMlx(LibraryValues):
    mode = "MLX"
    narrowed: ClassVar = {"complex128": "complex64"}


def test_a_negative_stride_along_one_element_is_refused():
    """What the docs say of strides; a copy helps."""
    index = pt.lmatrix("index")
    out = sparse_block_dot(np.ones((2, 1, 3, 4)), np.ones((5, 1, 3)), index, None, index)
    function = pytensor.function([index], out, mode="MLX")
    column = np.zeros((5, 1), "int64")[:, ::-1]
    with pytest.raises(ValueError, match="negative strides"):
        function(column)
    np.testing.assert_array_equal(function(column.copy()), 3)
