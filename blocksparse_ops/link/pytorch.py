"""The ops in PyTorch: importing this registers them."""

from collections.abc import Callable
from typing import Any

import torch
from pytensor.graph.basic import Apply, Constant
from pytensor.link.pytorch.dispatch import pytorch_funcify
from pytensor.tensor.basic import Alloc
from torch import Tensor

from blocksparse_ops.base import SparseBlockOp
from blocksparse_ops.bias import CheckedColumns
from blocksparse_ops.gradient import SparseBlockGradient
from blocksparse_ops.kernels.mapped import Axes
from blocksparse_ops.kernels.pytorch import gemv, outer
from blocksparse_ops.kernels.pytorch_steps import LIBRARY, operator
from blocksparse_ops.link.traced import (
    funcify_CheckedColumns,
    refuse_gradient,
    scaled,
    with_sizes_checked,
    zeros_for_padding,
)
from blocksparse_ops.ops import SparseBlockGemv, SparseBlockOuter
from blocksparse_ops.signature import SIGNATURES, check_range
from blocksparse_ops.zeros import BlockFull, BlockZeros

# What PyTorch multiplies no matrices of; in integers of 64 bits the result wraps as it should.
AS_INTEGERS = (torch.bool, torch.uint16, torch.uint32, torch.uint64)


@operator(
    "check_index(Tensor index, int blocks, str op, str argument, int? padding) -> Tensor",
    lambda index, *others: index.new_empty((), dtype=torch.int64),
)
def check_index(index: Tensor, blocks: int, op: str, argument: str, padding: int | None) -> Tensor:
    """A zero, once an index into a known number of blocks is in range.

    An operator may not return its argument, and to add a zero takes less time than a copy.
    """
    values = index.numpy(force=True)
    named = values if padding is None else values[values != padding]
    # NumPy finds both in less time than PyTorch.
    if named.size and (named.min() < -blocks or named.max() >= blocks):
        signature = SIGNATURES[op]
        axis = signature.dimension_name(signature.blocks_of(argument))
        check_range(f"{op}: {argument}", values, axis, blocks, padding)
    return torch.zeros((), dtype=torch.int64, device=index.device)


@torch.library.register_vmap("blocksparse_ops::check_index", lib=LIBRARY)
def _(info: Any, axes: Axes, index: Tensor, *others: Any) -> tuple[Tensor, None]:
    # A check takes any number of dimensions.
    return check_index(index, *others), None


def checks_of(op: SparseBlockOp, node: Apply) -> dict[str, Callable] | None:
    """For each index what checks it, once all sizes are known, and makes it one of PyTorch's."""
    sizes = [size for x in node.inputs for size in x.type.shape]
    if None in sizes:
        return None

    def check_of(name: str, is_constant: bool) -> Callable:
        if is_constant:  # it has been checked
            return lambda index: index.long()
        blocks = sizes[op.signature.blocks_of(name)]
        about = blocks, op.signature.op, name, op.padding_idx
        return lambda index: index.long() + check_index(index, *about)

    constants = [isinstance(index, Constant) for index in op.indices(node)]
    return {
        name: check_of(name, is_constant)
        for name, is_constant in zip(op.signature.indexed, constants, strict=True)
    }


@pytorch_funcify.register(SparseBlockGemv)
def pytorch_funcify_SparseBlockGemv(op: SparseBlockGemv, node: Apply, **kwargs: Any) -> Callable:
    checks = checks_of(op, node)

    def sparse_block_gemv(
        o: Tensor, W: Tensor, h: Tensor, inputIdx: Tensor, outputIdx: Tensor
    ) -> Tensor:
        if checks:
            inputIdx, outputIdx = checks["inputIdx"](inputIdx), checks["outputIdx"](outputIdx)
        already = bool(checks)
        if o.dtype in AS_INTEGERS:
            o_long, W, h = (value.long() for value in (o, W, h))
            return gemv(o_long, W, h, inputIdx, outputIdx, already, op.padding_idx).to(o.dtype)
        return gemv(o, W, h, inputIdx, outputIdx, already, op.padding_idx)

    return with_sizes_checked(op, node, sparse_block_gemv)


@pytorch_funcify.register(SparseBlockOuter)
def pytorch_funcify_SparseBlockOuter(op: SparseBlockOuter, node: Apply, **kwargs: Any) -> Callable:
    checks, scale = checks_of(op, node), scaled(torch, node)

    def sparse_block_outer(
        o: Tensor, x: Tensor, y: Tensor, xIdx: Tensor, yIdx: Tensor, alpha: Tensor
    ) -> Tensor:
        if checks:
            xIdx, yIdx = checks["xIdx"](xIdx), checks["yIdx"](yIdx)
        x, already = zeros_for_padding(torch, op, x, xIdx), bool(checks)
        if o.dtype in AS_INTEGERS:
            o_long, x, y, alpha = (value.long() for value in (o, x, y, alpha))
            factors = scale(x, y, alpha)
            return outer(o_long, *factors, xIdx, yIdx, already, op.padding_idx).to(o.dtype)
        return outer(o, *scale(x, y, alpha), xIdx, yIdx, already, op.padding_idx)

    return with_sizes_checked(op, node, sparse_block_outer)


@pytorch_funcify.register(BlockZeros)
@pytorch_funcify.register(BlockFull)
def pytorch_funcify_allocation(op: Alloc, node: Apply, **kwargs: Any) -> Callable:
    value, *sizes = node.inputs
    shape = [int(size.data) for size in sizes if isinstance(size, Constant)]
    if not isinstance(value, Constant) or value.data.size != 1 or len(shape) < len(sizes):
        return pytorch_funcify.dispatch(Alloc)(op, node=node, **kwargs)
    # Sizes that are tensors PyTorch's compiler does not know: it breaks the graph there.
    number = value.data.item()
    return lambda value, *_: torch.full(shape, number, dtype=value.dtype, device=value.device)


@pytorch_funcify.register(CheckedColumns)
def pytorch_funcify_CheckedColumns(op: CheckedColumns, **kwargs: Any) -> Callable:
    columns_of = funcify_CheckedColumns(op)
    # PyTensor's other ops take no number.
    return lambda W, b: torch.tensor(columns_of(W, b))


pytorch_funcify.register(SparseBlockGradient, refuse_gradient)
