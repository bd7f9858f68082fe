"""The ops in MLX: importing this registers them."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from pytensor.graph.basic import Apply
from pytensor.link.mlx.dispatch import mlx_funcify

from blocksparse_ops.bias import CheckedColumns
from blocksparse_ops.gradient import SparseBlockGradient
from blocksparse_ops.kernels.mlx import gemv, outer
from blocksparse_ops.link.traced import (
    funcify_CheckedColumns,
    refuse_gradient,
    scaled,
    with_sizes_checked,
    zeros_for_padding,
)
from blocksparse_ops.ops import SparseBlockGemv, SparseBlockOuter


@mlx_funcify.register(SparseBlockGemv)
def mlx_funcify_SparseBlockGemv(op: SparseBlockGemv, node: Apply, **kwargs: Any) -> Callable:
    def sparse_block_gemv(
        o: mx.array, W: mx.array, h: mx.array, inputIdx: mx.array, outputIdx: mx.array
    ) -> mx.array:
        return gemv(o, W, h, inputIdx, outputIdx, padding=op.padding_idx)

    return with_sizes_checked(op, node, sparse_block_gemv)


@mlx_funcify.register(SparseBlockOuter)
def mlx_funcify_SparseBlockOuter(op: SparseBlockOuter, node: Apply, **kwargs: Any) -> Callable:
    scale = scaled(mx, node)

    def sparse_block_outer(
        o: mx.array, x: mx.array, y: mx.array, xIdx: mx.array, yIdx: mx.array, alpha: mx.array
    ) -> mx.array:
        x = zeros_for_padding(mx, op, x, xIdx)
        return outer(o, *scale(x, y, alpha), xIdx, yIdx, padding=op.padding_idx)

    return with_sizes_checked(op, node, sparse_block_outer)


mlx_funcify.register(CheckedColumns, funcify_CheckedColumns)
mlx_funcify.register(SparseBlockGradient, refuse_gradient)
