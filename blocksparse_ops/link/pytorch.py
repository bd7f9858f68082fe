"""The ops in PyTorch: importing this registers them."""

from collections.abc import Callable
from typing import Any

import torch
from pytensor.link.pytorch.dispatch import pytorch_funcify
from torch import Tensor
from torch.library import custom_op

from blocksparse_ops.index import CheckBlockIndex
from blocksparse_ops.kernels.mapped import Axes
from blocksparse_ops.kernels.pytorch import gemv, outer
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
def pytorch_funcify_SparseBlockGemv(op: SparseBlockGemv, **kwargs: Any) -> Callable:
    return sparse_block_gemv


@pytorch_funcify.register(SparseBlockOuter)
def pytorch_funcify_SparseBlockOuter(op: SparseBlockOuter, **kwargs: Any) -> Callable:
    return sparse_block_outer


# The ops whose checks are compiled: an operator of PyTorch takes a number, not an op.
CHECKS: list[CheckBlockIndex] = []


@custom_op("blocksparse_ops::check_block_index", mutates_args=())
def check_block_index(index: Tensor, sizes: Tensor, check: int) -> Tensor:
    CHECKS[check].check(index.numpy(force=True), *sizes.tolist())
    # PyTorch takes bytes for a mask, and no other small or unsigned integers as an index.
    return index.to(torch.int64, copy=True)


@check_block_index.register_fake
def _(index: Tensor, sizes: Tensor, check: int) -> Tensor:
    return torch.empty_like(index, dtype=torch.int64)


@check_block_index.register_vmap
def _(info: Any, axes: Axes, index: Tensor, sizes: Tensor, check: int) -> tuple[Tensor, int]:
    index, sizes = (
        torch.broadcast_to(x, (info.batch_size, *x.shape)) if axis is None else x.movedim(axis, 0)
        for x, axis in ((index, axes[0]), (sizes, axes[1]))
    )
    checked = [check_block_index(*one, check) for one in zip(index, sizes, strict=True)]
    return torch.stack(checked), 0


@pytorch_funcify.register(CheckBlockIndex)
def pytorch_funcify_CheckBlockIndex(op: CheckBlockIndex, **kwargs: Any) -> Callable:
    if op not in CHECKS:
        CHECKS.append(op)
    number = CHECKS.index(op)

    def checked(index: Tensor, *sizes: Any) -> Tensor:
        return check_block_index(index, torch.stack(list(map(torch.as_tensor, sizes))), number)

    return checked
