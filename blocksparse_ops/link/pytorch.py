"""The ops in PyTorch: importing this registers them."""

from collections.abc import Callable
from typing import Any

import torch
from pytensor.graph.basic import Apply
from pytensor.link.pytorch.dispatch import pytorch_funcify
from torch import Tensor

from blocksparse_ops.bias import CheckedColumns
from blocksparse_ops.kernels.pytorch import gemv, outer
from blocksparse_ops.link.traced import funcify_CheckedColumns, with_sizes_checked
from blocksparse_ops.ops import SparseBlockGemv, SparseBlockOuter

# What PyTorch multiplies no matrices of; in integers of 64 bits the result wraps as it should.
AS_INTEGERS = (torch.bool, torch.uint16, torch.uint32, torch.uint64)


def sparse_block_gemv(
    o: Tensor, W: Tensor, h: Tensor, inputIdx: Tensor, outputIdx: Tensor
) -> Tensor:
    if o.dtype in AS_INTEGERS:
        return gemv(*(x.long() for x in (o, W, h)), inputIdx, outputIdx).to(o.dtype)
    return gemv(o, W, h, inputIdx, outputIdx)


def sparse_block_outer(
    o: Tensor, x: Tensor, y: Tensor, xIdx: Tensor, yIdx: Tensor, alpha: Tensor
) -> Tensor:
    if o.dtype in AS_INTEGERS:
        o_long, x, y, alpha = (value.long() for value in (o, x, y, alpha))
        return outer(o_long, alpha * x, y, xIdx, yIdx).to(o.dtype)
    return outer(o, alpha * x, y, xIdx, yIdx)


@pytorch_funcify.register(SparseBlockGemv)
def pytorch_funcify_SparseBlockGemv(op: SparseBlockGemv, node: Apply, **kwargs: Any) -> Callable:
    return with_sizes_checked(op, node, sparse_block_gemv)


@pytorch_funcify.register(SparseBlockOuter)
def pytorch_funcify_SparseBlockOuter(op: SparseBlockOuter, node: Apply, **kwargs: Any) -> Callable:
    return with_sizes_checked(op, node, sparse_block_outer)


pytorch_funcify.register(CheckedColumns, funcify_CheckedColumns)
