"""A user's program, which runs and which a type checker finds nothing in: see test_types.py."""

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable
from scipy.sparse import bsr_array

from blocksparse_ops import (
    SparseBlockGemv,
    SparseBlockOuter,
    sparse_block_dot,
    sparse_block_gemv,
    sparse_block_outer,
    sparse_block_outer_inplace,
)
from blocksparse_ops.bsr import bsr_from_weights, weights_from_bsr
from blocksparse_ops.pattern import PatternCosts, block_counts, draw_pattern, pattern_costs


def products(weights: np.ndarray, values: np.ndarray) -> list[TensorVariable]:
    """Of arrays, lists and variables, with a bias and without."""
    W, h, b = pt.constant(weights), pt.as_tensor_variable(values), pt.zeros((2, 5))
    inputIdx, outputIdx = pt.constant(np.array([[0, 1], [1, 2]])), pt.constant([[0], [1]])
    return [
        sparse_block_dot(weights, values, [[0, 1], [1, 2]], None, [[0], [1]]),
        sparse_block_dot(weights, values[0], [0, 1], [[0.0] * 5] * 2, range(1)),
        sparse_block_dot(W, h, inputIdx, b, outputIdx),
        sparse_block_dot(
            W=W, h=h, inputIdx=np.array([[0, 1], [1, 2]]), b=None, outputIdx=outputIdx
        ),
    ]


def trained(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The weights after a step along the gradient."""
    W, h = pytensor.shared(weights, name="W"), pt.tensor3("h")
    cost = sparse_block_dot(W, h, [[0, 1], [1, 2]], None, [[0], [1]]).sum()
    gradient = pt.grad(cost, W)
    assert isinstance(gradient, TensorVariable)
    pytensor.function([h], cost, updates=[(W, W - 0.1 * gradient)])(values)
    learned: np.ndarray = W.get_value()
    return learned


def by_hand(weights: np.ndarray, values: np.ndarray) -> tuple[TensorVariable, TensorVariable]:
    """The ops themselves; the sum of a result is a tensor, too."""
    o = np.zeros((2, 1, 5))
    out: TensorVariable = sparse_block_gemv(o, weights, values, [[0, 1], [1, 2]], [[0], [1]])
    again = SparseBlockGemv()(
        out, weights, h=values, inputIdx=[[0, 1], [1, 2]], outputIdx=[[0], [1]]
    )
    update = sparse_block_outer(weights, values, again, [[0, 1], [1, 2]], [[0], [1]])
    scaled = SparseBlockOuter(inplace=False)(
        update, values, again, [[0, 1], [1, 2]], [[0], [1]], alpha=-0.1, name="scaled"
    )
    assert sparse_block_outer_inplace.inplace
    return again.sum(), scaled


def patterns() -> tuple[PatternCosts, int, str]:
    costs = pattern_costs((3, 2, 4, 5), np.array([[0, 1], [1, 2]]), [[0], [1]], dtype=np.float32)
    most = int(np.max(block_counts([0, 1], [0], (3, 2))))
    return costs, most, draw_pattern([[0, 1], [1, 2]], [[0], [1]], blocks=(3, 2)).get_title()


def there_and_back(weights: np.ndarray) -> np.ndarray:
    matrix: bsr_array = bsr_from_weights(weights, [0, 2], np.array([1]))
    W, inputIdx, outputIdx = weights_from_bsr(matrix)
    return W[inputIdx][:, outputIdx]


def main() -> None:
    weights, values = np.ones((3, 2, 4, 5)), np.ones((2, 2, 4))
    shapes = [x.eval().shape for x in products(weights, values)]
    assert shapes == [(2, 1, 5), (1, 1, 5), (2, 1, 5), (2, 1, 5)]
    assert np.isclose(trained(weights, values)[0, 0, 0, 0], 0.9)
    total, scaled = by_hand(weights, values)
    assert (total.eval(), scaled.name, scaled.eval().shape) == (160.0, "scaled", (3, 2, 4, 5))
    costs, most, title = patterns()
    assert (costs.blocks_in_use, most, title[:6]) == (4, 1, "4 of 6")
    assert there_and_back(weights).shape == (2, 1, 4, 5)


if __name__ == "__main__":
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        main()
