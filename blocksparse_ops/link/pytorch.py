"""The ops in PyTorch: importing this registers them."""

from collections.abc import Callable
from typing import Any

import torch
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.link.pytorch.dispatch import pytorch_funcify
from pytensor.tensor.basic import Alloc
from torch import Tensor
from torch.library import custom_op

from blocksparse_ops.base import SparseBlockOp
from blocksparse_ops.index import CheckBlockIndex
from blocksparse_ops.kernels.mapped import Axes
from blocksparse_ops.kernels.pytorch import LIBRARY, gemv, operator, outer
from blocksparse_ops.ops import SparseBlockGemv, SparseBlockOuter
from blocksparse_ops.reference import first_out_of_range
from blocksparse_ops.zeros import BlockZeros, is_zeros

# What PyTorch multiplies no matrices of; in integers of 64 bits the result wraps as it should.
AS_INTEGERS = (torch.bool, torch.uint16, torch.uint32, torch.uint64)


def is_checked(index: Variable, blocks: int | None) -> bool:
    """Whether an index is known to be in range when a function is compiled or has been checked."""
    if isinstance(index, Constant):
        return blocks is not None and first_out_of_range(index.data, blocks) is None
    return index.owner is not None and isinstance(index.owner.op, CheckBlockIndex)


def are_checked(op: SparseBlockOp, node: Apply) -> bool:
    """Whether both indices are, and all sizes known and right."""
    sizes = [size for x in node.inputs for size in x.type.shape]
    if None in sizes:
        return False
    op.signature.check_sizes([x.type.shape for x in node.inputs])
    names, blocks_of = op.signature.names, op.signature.blocks_of
    return all(
        is_checked(node.inputs[names.index(name)], sizes[blocks_of(name)])
        for name in op.signature.indexed
    )


@pytorch_funcify.register(SparseBlockGemv)
def pytorch_funcify_SparseBlockGemv(op: SparseBlockGemv, node: Apply, **kwargs: Any) -> Callable:
    checked = are_checked(op, node)

    def sparse_block_gemv(
        o: Tensor, W: Tensor, h: Tensor, inputIdx: Tensor, outputIdx: Tensor
    ) -> Tensor:
        if checked:
            inputIdx, outputIdx = inputIdx.long(), outputIdx.long()
        if o.dtype in AS_INTEGERS:
            o_long, W, h = (value.long() for value in (o, W, h))
            return gemv(o_long, W, h, inputIdx, outputIdx, checked).to(o.dtype)
        return gemv(o, W, h, inputIdx, outputIdx, checked)

    return sparse_block_gemv


@pytorch_funcify.register(SparseBlockOuter)
def pytorch_funcify_SparseBlockOuter(op: SparseBlockOuter, node: Apply, **kwargs: Any) -> Callable:
    checked = are_checked(op, node)

    def sparse_block_outer(
        o: Tensor, x: Tensor, y: Tensor, xIdx: Tensor, yIdx: Tensor, alpha: Tensor
    ) -> Tensor:
        if checked:
            xIdx, yIdx = xIdx.long(), yIdx.long()
        if o.dtype in AS_INTEGERS:
            o_long, x, y, alpha = (value.long() for value in (o, x, y, alpha))
            return outer(o_long, alpha * x, y, xIdx, yIdx, checked).to(o.dtype)
        return outer(o, alpha * x, y, xIdx, yIdx, checked)

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


@operator(
    "check_known_block_index(Tensor index, int blocks, int check) -> Tensor",
    lambda index, blocks, check: index.new_empty((), dtype=torch.int64),
)
def check_known(index: Tensor, blocks: int, check: int) -> Tensor:
    """A zero, once an index into a known number of blocks is in range.

    An operator may not return its argument, and to add a zero takes less time than a copy.
    """
    values = index.numpy(force=True)
    # NumPy finds both in less time than PyTorch.
    if values.size and (values.min() < -blocks or values.max() >= blocks):
        CHECKS[check].check_range(values, blocks)
    return torch.zeros((), dtype=torch.int64, device=index.device)


@torch.library.register_vmap("blocksparse_ops::check_known_block_index", lib=LIBRARY)
def _(info: Any, axes: Axes, index: Tensor, blocks: int, check: int) -> tuple[Tensor, None]:
    # A check takes any number of dimensions.
    return check_known(index, blocks, check), None


@pytorch_funcify.register(CheckBlockIndex)
def pytorch_funcify_CheckBlockIndex(op: CheckBlockIndex, node: Apply, **kwargs: Any) -> Callable:
    if op not in CHECKS:
        CHECKS.append(op)
    number = CHECKS.index(op)
    known = [int(x.data) for x in node.inputs[1:] if isinstance(x, Constant)]
    if len(known) == len(node.inputs) - 1:
        blocks, *known_sizes = known
        op.check_sizes(*known_sizes)
        return lambda index, *sizes: index.long() + check_known(index, blocks, number)

    def checked(index: Tensor, *sizes: Any) -> Tensor:
        return check_block_index(index, torch.stack(list(map(torch.as_tensor, sizes))), number)

    return checked


@pytorch_funcify.register(BlockZeros)
def pytorch_funcify_BlockZeros(op: BlockZeros, node: Apply, **kwargs: Any) -> Callable:
    value, *sizes = node.inputs
    shape = [int(size.data) for size in sizes if isinstance(size, Constant)]
    if not is_zeros(value) or len(shape) < len(sizes):
        return pytorch_funcify.dispatch(Alloc)(op, node=node, **kwargs)
    # Sizes that are tensors PyTorch's compiler does not know: it breaks the graph there.
    return lambda value, *_: torch.zeros(shape, dtype=value.dtype, device=value.device)
