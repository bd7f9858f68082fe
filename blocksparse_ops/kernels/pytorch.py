"""Both ops for PyTorch, as custom operators: loops over tiles, which differentiate into each other.

PyTorch's compiler takes an operator as it is. So what depends on the values of indices, above all
an error, needs no form that it could trace, and the indices are checked and sorted by NumPy.
"""

import numpy as np
import torch
from torch import Tensor
from torch.library import custom_op

from blocksparse_ops import reference
from blocksparse_ops.kernels.mapped import fold, map_gemv, map_outer
from blocksparse_ops.kernels.tiles import (
    SORTED_REUSE,
    Sizes,
    choose_form,
    cut,
    reuse_of,
    rows_of_step,
)
from blocksparse_ops.signature import GEMV, OUTER

# The working set of a step, in elements: a step has more overhead than in compiled code.
STEP_ELEMENTS = 1 << 18


def sizes_of(left, right, blocks):
    return Sizes(*left.shape, right.shape[1], *blocks.shape[:2])


def checked(signature, arguments):
    """The indices, which come last, as arrays counted from the start, if all is right."""
    *values, left, right = arguments
    return reference.check(signature, [*values, left.numpy(force=True), right.numpy(force=True)])


def steps_of(signature, arguments, blocks):
    """Check the arguments, and yield the steps, as tensors where the blocks are."""
    left, right = checked(signature, arguments)
    sizes = sizes_of(left, right, blocks)
    if sizes.triples and blocks.numel():
        form = choose_form(sizes, *blocks.shape[2:], STEP_ELEMENTS)
        tiles = cut(np, left, right, sizes, form)
        for number in range(tiles.steps):
            step = rows_of_step(np, tiles, number)
            yield type(step)(*(torch.from_numpy(x).to(blocks.device) for x in step))


def rows(values):
    """The rows of all windows one after the other, and one of zeros that pads tiles."""
    return torch.cat([fold(values), values.new_zeros(1, values.shape[2])])


def counted(index, blocks):
    """An index counted from the start; `blocks` if out of range, for which an operator raises."""
    wraps = index.dtype == torch.uint64
    index = index.to(torch.int64)
    index = torch.where(index < 0, blocks if wraps else index + blocks, index)
    return torch.where((index >= 0) & (index < blocks), index, blocks)


@custom_op("blocksparse_ops::gemv", mutates_args=())
def gemv_in_steps(o: Tensor, W: Tensor, h: Tensor, inputIdx: Tensor, outputIdx: Tensor) -> Tensor:
    left, sums = rows(h), rows(o)
    for step in steps_of(GEMV, (o, W, h, inputIdx, outputIdx), W):
        products = torch.matmul(left[step.left], W[step.i, step.j])
        sums.index_add_(0, step.right.flatten(), fold(products))
    return sums[:-1].reshape(o.shape)


@custom_op("blocksparse_ops::outer", mutates_args=())
def outer_in_steps(o: Tensor, x: Tensor, y: Tensor, xIdx: Tensor, yIdx: Tensor) -> Tensor:
    left, right = rows(x), rows(y)
    o = o.clone(memory_format=torch.contiguous_format)
    for step in steps_of(OUTER, (o, x, y, xIdx, yIdx), o):
        products = torch.matmul(left[step.left].mT, right[step.right])
        o.index_put_((step.i, step.j), products, accumulate=True)
    return o


@custom_op("blocksparse_ops::check_gemv", mutates_args=())
def check_gemv(
    o: Tensor, W: Tensor, h: Tensor, inputIdx: Tensor, outputIdx: Tensor
) -> tuple[Tensor, Tensor]:
    left, right = checked(GEMV, (o, W, h, inputIdx, outputIdx))
    return torch.from_numpy(left).to(W.device), torch.from_numpy(right).to(W.device)


@check_gemv.register_fake
def _(o, W, h, inputIdx, outputIdx):
    return tuple(torch.empty_like(x, dtype=torch.int64) for x in (inputIdx, outputIdx))


def gemv_fused(o, W, h, inputIdx, outputIdx):
    """For PyTorch's compiler, which makes of it one loop that gathers no block."""
    left, right = check_gemv(o, W, h, inputIdx, outputIdx)
    blocks = W[left[:, None, :], right[:, :, None]]
    return o + (h[:, None, :, :, None] * blocks).sum((2, 3), dtype=o.dtype)


for steps in (gemv_in_steps, outer_in_steps):
    steps.register_fake(
        lambda o, *others: torch.empty_like(o, memory_format=torch.contiguous_format)
    )


class Bilinear(torch.autograd.Function):
    """What is added to, and a term that is linear in each of two factors."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @classmethod
    def pushforward(cls, ctx, to, t_one, t_other):
        """The tangent: that of o, with a term for each factor that has one."""
        o, one, other, *indices = ctx.saved_tensors
        tangent = torch.zeros_like(o) if to is None else to
        if t_one is not None:
            tangent = cls.apply(tangent, t_one, other, *indices)
        if t_other is not None:
            tangent = cls.apply(tangent, one, t_other, *indices)
        return tangent


class Gemv(Bilinear):
    """o[n, w] + sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]"""

    @staticmethod
    def forward(o, W, h, inputIdx, outputIdx):
        reuse = reuse_of(sizes_of(inputIdx, outputIdx, W))
        fused = torch.compiler.is_compiling() and reuse < SORTED_REUSE
        return (gemv_fused if fused else gemv_in_steps)(o, W, h, inputIdx, outputIdx)

    @staticmethod
    def backward(ctx, cotangent):
        _, W, h, inputIdx, outputIdx = ctx.saved_tensors
        _, needs_W, needs_h, *_ = ctx.needs_input_grad
        to_W = to_h = None
        if needs_W:
            to_W = outer(torch.zeros_like(W), h, cotangent, inputIdx, outputIdx)
        if needs_h:
            to_h = gemv(torch.zeros_like(h), W.permute(1, 0, 3, 2), cotangent, outputIdx, inputIdx)
        return cotangent, to_W, to_h, None, None

    @staticmethod
    def jvp(ctx, to, tW, th, *_):
        return Gemv.pushforward(ctx, to, tW, th)

    @staticmethod
    def vmap(info, axes, *arguments):
        return map_gemv(torch, counted, gemv, arguments, axes), 0


class Outer(Bilinear):
    """o[xIdx[n, v], yIdx[n, w]] += outer(x[n, v], y[n, w])"""

    @staticmethod
    def forward(o, x, y, xIdx, yIdx):
        return outer_in_steps(o, x, y, xIdx, yIdx)

    @staticmethod
    def backward(ctx, cotangent):
        _, x, y, xIdx, yIdx = ctx.saved_tensors
        _, needs_x, needs_y, *_ = ctx.needs_input_grad
        to_x = to_y = None
        if needs_x:
            to_x = gemv(torch.zeros_like(x), cotangent.permute(1, 0, 3, 2), y, yIdx, xIdx)
        if needs_y:
            to_y = gemv(torch.zeros_like(y), cotangent, x, xIdx, yIdx)
        return cotangent, to_x, to_y, None, None

    @staticmethod
    def jvp(ctx, to, tx, ty, *_):
        return Outer.pushforward(ctx, to, tx, ty)

    @staticmethod
    def vmap(info, axes, *arguments):
        return map_outer(torch, counted, outer, arguments, axes), 0


gemv, outer = Gemv.apply, Outer.apply
