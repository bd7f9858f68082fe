"""The ops in PyTorch: importing this registers them."""

from collections.abc import Sequence

import torch
from pytensor.link.pytorch.dispatch import pytorch_funcify
from torch import Tensor
from torch.library import custom_op

from blocksparse_ops.gemv import SparseBlockGemv
from blocksparse_ops.index import CheckBlockIndex
from blocksparse_ops.kernels.pytorch import gemv, outer
from blocksparse_ops.outer import SparseBlockOuter

# What PyTorch multiplies no matrices of; in integers of 64 bits the result wraps as it should.
AS_INTEGERS = (torch.bool, torch.uint16, torch.uint32, torch.uint64)


def sparse_block_gemv(o, W, h, inputIdx, outputIdx):
    if o.dtype in AS_INTEGERS:
        return gemv(*(x.long() for x in (o, W, h)), inputIdx, outputIdx).to(o.dtype)
    return gemv(o, W, h, inputIdx, outputIdx)


def sparse_block_outer(o, x, y, xIdx, yIdx, alpha):
    if o.dtype in AS_INTEGERS:
        o_long, x, y, alpha = (value.long() for value in (o, x, y, alpha))
        return outer(o_long, alpha * x, y, xIdx, yIdx).to(o.dtype)
    return outer(o, alpha * x, y, xIdx, yIdx)


@pytorch_funcify.register(SparseBlockGemv)
def pytorch_funcify_SparseBlockGemv(op, **kwargs):
    return sparse_block_gemv


@pytorch_funcify.register(SparseBlockOuter)
def pytorch_funcify_SparseBlockOuter(op, **kwargs):
    return sparse_block_outer


# The ops whose checks are compiled: an operator of PyTorch takes a number, not an op.
CHECKS = []


@custom_op("blocksparse_ops::check_block_index", mutates_args=())
def check_block_index(index: Tensor, sizes: Sequence[int], check: int) -> Tensor:
    CHECKS[check].check(index.numpy(force=True), *sizes)
    # PyTorch takes bytes for a mask, and no other small or unsigned integers as an index.
    return index.to(torch.int64, copy=True)


@check_block_index.register_fake
def _(index, sizes, check):
    return torch.empty_like(index, dtype=torch.int64)


@pytorch_funcify.register(CheckBlockIndex)
def pytorch_funcify_CheckBlockIndex(op, **kwargs):
    CHECKS.append(op)
    number = len(CHECKS) - 1

    def checked(index, *sizes):
        return check_block_index(index, [int(size) for size in sizes], number)

    return checked
