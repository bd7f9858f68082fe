"""The block-sparse product and the block-sparse outer product: each other's derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply
from pytensor.graph.replace import _vectorize_node
from pytensor.tensor.blockwise import vectorize_node_fallback
from pytensor.tensor.random.utils import compute_batch_shape
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops import reference
from blocksparse_ops.arguments import TensorLike
from blocksparse_ops.base import SparseBlockOp
from blocksparse_ops.signature import GEMV, OUTER
from blocksparse_ops.zeros import zeros_like


class SparseBlockGemv(SparseBlockOp):
    """``o[n, w] + sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]``

    Parameters
    ----------
    inplace : bool, optional
        Write the result into `o`. For rewrites: PyTensor refuses such an op in a user's graph.
    padding_idx : int, optional
        The index that names no block: what stands there adds nothing, and nothing is added there.

    Notes
    -----
    A call takes

    =============================  ==================================  =============================
    name                           shape                               meaning
    =============================  ==================================  =============================
    ``o``                          (batch, oWin, oSize)                what is added to, usually the
                                                                       bias of the blocks in use
    ``W``                          (iBlocks, oBlocks, iSize, oSize)    the weights, all blocks
    ``h``                          (batch, iWin, iSize)                the input blocks in use
    ``inputIdx``, ``outputIdx``    (batch, iWin), (batch, oWin)        which blocks these are
    =============================  ==================================  =============================

    and returns a tensor of the shape of `o`. `o`, `W` and `h` are upcast together. Indices are
    integers of any dtype; negative ones count from the end, repeated ones accumulate.

    It raises a TypeError for a wrong number of dimensions, for indices that are no integers and
    for an in-place `o` that would need a cast; a ValueError for sizes that disagree, when the
    graph is built or when it runs; and an IndexError, before anything is written, for an index
    out of range.

    The idea, the names and the argument order are Theano's ``tensor.nnet.blocksparse``.

    Examples
    --------
    >>> import numpy as np
    >>> from blocksparse_ops import sparse_block_gemv
    >>> W = np.arange(2 * 3).reshape(2, 3, 1, 1)  # six blocks of 1 x 1
    >>> h = np.ones((1, 2, 1))  # one example uses two input blocks
    >>> o = np.zeros((1, 1, 1))  # and one output block
    >>> sparse_block_gemv(o, W, h, [[0, 1]], [[2]]).eval()
    array([[[7.]]])
    """

    signature = GEMV

    def __call__(
        self,
        o: TensorLike,
        W: TensorLike,
        h: TensorLike,
        inputIdx: TensorLike,
        outputIdx: TensorLike,
        **kwargs: Any,
    ) -> TensorVariable:
        return super().__call__(o, W, h, inputIdx, outputIdx, **kwargs)

    def make_node(
        self,
        o: TensorLike,
        W: TensorLike,
        h: TensorLike,
        inputIdx: TensorLike,
        outputIdx: TensorLike,
    ) -> Apply:
        return super().make_node(o, W, h, inputIdx, outputIdx)

    def perform(
        self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list]
    ) -> None:
        output_storage[0][0] = reference.gemv(
            *inputs, inplace=self.inplace, padding_idx=self.padding_idx
        )

    def gradients(self, g: TensorVariable, *inputs: TensorVariable) -> dict[str, TensorVariable]:
        _, W, h, inputIdx, outputIdx = inputs
        gemv, outer = both_ops(self.padding_idx)
        return {
            "W": outer(zeros_like(W), h, g, inputIdx, outputIdx),
            "h": gemv(zeros_like(h), W.transpose(1, 0, 3, 2), g, outputIdx, inputIdx),
        }

    def flops(self, inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]) -> int:
        """Multiplications and additions of one call, from its shapes, for PyTensor's profiler."""
        (batch, oWin, oSize), _, (_, iWin, iSize), _, _ = inputs
        return 2 * batch * iWin * oWin * iSize * oSize


class SparseBlockOuter(SparseBlockOp):
    """``o[xIdx[n, v], yIdx[n, w]] += alpha * outer(x[n, v], y[n, w])`` for all n, v and w

    Parameters
    ----------
    inplace : bool, optional
        Write the result into `o`. For rewrites: PyTensor refuses such an op in a user's graph.
    padding_idx : int, optional
        The index that names no block: what stands there adds nothing, and nothing is added there.

    Notes
    -----
    A call takes

    ===================  ==================================  =======================================
    name                 shape                               meaning
    ===================  ==================================  =======================================
    ``o``                (iBlocks, oBlocks, iSize, oSize)    what is added to
    ``x``, ``y``         (batch, iWin, iSize),               the vectors whose outer products are
                         (batch, oWin, oSize)                added
    ``xIdx``, ``yIdx``   (batch, iWin), (batch, oWin)        to which blocks
    ``alpha``            ()                                  scale, 1 if left out
    ===================  ==================================  =======================================

    and returns a tensor of the shape of `o`. `o`, `x` and `y` are upcast together; `alpha` is
    cast to their dtype and never upcasts them; if it is 0, nothing is added, whatever `x` and `y`
    hold, as in BLAS. Indices are integers of any dtype; negative ones count from the end, repeated
    ones accumulate.

    It raises a TypeError for a wrong number of dimensions, for indices that are no integers, for
    an in-place `o` that would need a cast and for an `alpha` that would lose its fraction; a
    ValueError for sizes that disagree, when the graph is built or when it runs; and an
    IndexError, before anything is written, for an index out of range.

    The idea, the names and the argument order are Theano's ``tensor.nnet.blocksparse``.

    Examples
    --------
    >>> import numpy as np
    >>> from blocksparse_ops import sparse_block_outer
    >>> o = np.zeros((2, 3, 1, 1))  # six blocks of 1 x 1
    >>> x, y = np.full((1, 2, 1), 2.0), np.full((1, 1, 1), 3.0)
    >>> sparse_block_outer(o, x, y, [[0, 1]], [[2]], 0.5).eval()[:, :, 0, 0]
    array([[0., 0., 3.],
           [0., 0., 3.]])
    """

    signature = OUTER

    def __call__(
        self,
        o: TensorLike,
        x: TensorLike,
        y: TensorLike,
        xIdx: TensorLike,
        yIdx: TensorLike,
        alpha: TensorLike | None = None,
        **kwargs: Any,
    ) -> TensorVariable:
        return super().__call__(o, x, y, xIdx, yIdx, alpha, **kwargs)

    def make_node(
        self,
        o: TensorLike,
        x: TensorLike,
        y: TensorLike,
        xIdx: TensorLike,
        yIdx: TensorLike,
        alpha: TensorLike | None = None,
    ) -> Apply:
        return super().make_node(o, x, y, xIdx, yIdx, np.int8(1) if alpha is None else alpha)

    def perform(
        self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list]
    ) -> None:
        output_storage[0][0] = reference.outer(
            *inputs, inplace=self.inplace, padding_idx=self.padding_idx
        )

    def gradients(self, g: TensorVariable, *inputs: TensorVariable) -> dict[str, TensorVariable]:
        _, x, y, xIdx, yIdx, alpha = inputs
        gemv, _ = both_ops(self.padding_idx)
        unscaled_x = gemv(zeros_like(x), g.transpose(1, 0, 3, 2), y, yIdx, xIdx)
        unscaled_y = gemv(zeros_like(y), g, x, xIdx, yIdx)
        products = x * unscaled_x
        if self.padding_idx is not None:  # where x may be NaN
            padding = pt.constant(self.padding_idx, dtype=xIdx.dtype)
            # Not by `eq`, which PyTensor's PyTorch backend takes for torch.equal.
            products = pt.switch(pt.neq(xIdx, padding)[:, :, None], products, 0)
        return {
            "x": alpha * unscaled_x,
            "y": alpha * unscaled_y,
            "alpha": pt.sum(products, dtype=alpha.dtype),
        }

    def flops(self, inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]) -> int:
        """Multiplications and additions of one call, from its shapes, for PyTensor's profiler."""
        _, (batch, xWin, xSize), (_, yWin, ySize), *_ = inputs
        return 2 * batch * xWin * yWin * xSize * ySize


def both_ops(padding_idx: int | None) -> tuple[SparseBlockGemv, SparseBlockOuter]:
    """The ops to which the same index names no block."""
    return SparseBlockGemv(padding_idx=padding_idx), SparseBlockOuter(padding_idx=padding_idx)


sparse_block_gemv = SparseBlockGemv()
sparse_block_gemv_inplace = SparseBlockGemv(inplace=True)
sparse_block_outer = SparseBlockOuter()
sparse_block_outer_inplace = SparseBlockOuter(inplace=True)


@_vectorize_node.register(SparseBlockGemv)
def vectorize_sparse_block_gemv(
    op: SparseBlockGemv,
    node: Apply,
    o: TensorVariable,
    W: TensorVariable,
    h: TensorVariable,
    inputIdx: TensorVariable,
    outputIdx: TensorVariable,
) -> Apply:
    """Fold new batch dimensions into the op's own, unless W has them too."""
    if W.type.ndim != 4:
        return vectorize_node_fallback(op, node, o, W, h, inputIdx, outputIdx)
    batched = [o, h, inputIdx, outputIdx]
    ndims = [len(GEMV.axes[name]) for name in ("o", "h", "inputIdx", "outputIdx")]
    new_dims = max(x.type.ndim - ndim for x, ndim in zip(batched, ndims, strict=True))
    if not new_dims:
        return op.make_node(o, W, h, inputIdx, outputIdx)
    shape = compute_batch_shape(batched, ndims_params=ndims)
    new_shape = tuple(shape[axis] for axis in range(new_dims))

    def fold(x: TensorVariable, ndim: int) -> TensorVariable:
        batch, *core = tuple(x.shape)[x.type.ndim - ndim :]
        x = pt.broadcast_to(x, (*new_shape, batch, *core))
        return x.reshape((prod(new_shape) * batch, *core), ndim=ndim)

    o, h, inputIdx, outputIdx = (fold(x, n) for x, n in zip(batched, ndims, strict=True))
    folded = SparseBlockGemv(padding_idx=op.padding_idx)(o, W, h, inputIdx, outputIdx)
    out_shape = (*new_shape, *tuple(batched[0].shape)[-3:])
    return folded.reshape(out_shape, ndim=new_dims + 3).owner
