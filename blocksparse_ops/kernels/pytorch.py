"""Both ops for PyTorch, as custom operators: loops over tiles, which differentiate into each other.

PyTorch's compiler takes an operator as it is. So what depends on the values of indices, above all
an error, needs no form that it could trace, and the indices are checked and sorted by NumPy.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.library import custom_op

from blocksparse_ops import reference
from blocksparse_ops.kernels.mapped import Axes, fold, map_gemv, map_outer
from blocksparse_ops.kernels.tiles import (
    SORTED_REUSE,
    Step,
    choose_form,
    cut,
    reuse_of,
    rows_of_step,
    sizes_of,
)
from blocksparse_ops.signature import GEMV, OUTER, Signature

# The working set of a step, in elements: a step has more overhead than in compiled code.
STEP_ELEMENTS = 1 << 18

# In each argument, None where there is nothing.
Gradients: TypeAlias = tuple[Tensor | None, ...]


def checked(signature: Signature, arguments: Sequence[Tensor]) -> list[np.ndarray]:
    """The indices, which come last, as arrays counted from the start, if all is right."""
    *values, left, right = arguments
    return reference.check(signature, [*values, left.numpy(force=True), right.numpy(force=True)])


def steps_of(signature: Signature, arguments: Sequence[Tensor], blocks: Tensor) -> Iterator[Step]:
    """Check the arguments, and yield the steps, as tensors where the blocks are."""
    left, right = checked(signature, arguments)
    sizes = sizes_of(left, right, blocks.shape[:2])
    if sizes.triples and blocks.numel():
        form = choose_form(sizes, *blocks.shape[2:], step_elements=STEP_ELEMENTS)
        tiles = cut(np, left, right, sizes, form)
        for number in range(tiles.steps):
            step = rows_of_step(np, tiles, number)
            yield type(step)(*(torch.from_numpy(x).to(blocks.device) for x in step))


def rows(values: Tensor) -> Tensor:
    """The rows of all windows one after the other, and one of zeros that pads tiles."""
    return torch.cat([fold(values), values.new_zeros(1, values.shape[2])])


def counted(index: Tensor, blocks: int) -> Tensor:
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
def _(o: Tensor, W: Tensor, h: Tensor, inputIdx: Tensor, outputIdx: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, dtype=torch.int64) for x in (inputIdx, outputIdx))


def gemv_fused(o: Tensor, W: Tensor, h: Tensor, inputIdx: Tensor, outputIdx: Tensor) -> Tensor:
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
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @classmethod
    def pushforward(
        cls, ctx: Any, to: Tensor | None, t_one: Tensor | None, t_other: Tensor | None
    ) -> Tensor:
        """The tangent: that of o, with a term for each factor that has one."""
        o, one, other, *indices = ctx.saved_tensors
        tangent = torch.zeros_like(o) if to is None else to
        if t_one is not None:
            tangent = cls.apply(tangent, t_one, other, *indices)
        if t_other is not None:
            tangent = cls.apply(tangent, one, t_other, *indices)
        return tangent

    @staticmethod
    def pullback(
        ctx: Any, cotangent: Tensor, to_one: Callable[[], Tensor], to_other: Callable[[], Tensor]
    ) -> Gradients:
        """The gradients: that of o, and of each factor that needs one."""
        _, needs_one, needs_other, *_ = ctx.needs_input_grad
        one, other = to_one() if needs_one else None, to_other() if needs_other else None
        return cotangent, one, other, None, None


class Gemv(Bilinear):
    """o[n, w] + sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]"""

    @staticmethod
    def forward(o: Tensor, W: Tensor, h: Tensor, inputIdx: Tensor, outputIdx: Tensor) -> Tensor:
        reuse = reuse_of(sizes_of(inputIdx, outputIdx, W.shape[:2]))
        fused = torch.compiler.is_compiling() and reuse < SORTED_REUSE
        return (gemv_fused if fused else gemv_in_steps)(o, W, h, inputIdx, outputIdx)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Gradients:
        _, W, h, inputIdx, outputIdx = ctx.saved_tensors
        transposed = W.permute(1, 0, 3, 2)
        return Gemv.pullback(
            ctx,
            cotangent,
            lambda: outer(torch.zeros_like(W), h, cotangent, inputIdx, outputIdx),
            lambda: gemv(torch.zeros_like(h), transposed, cotangent, outputIdx, inputIdx),
        )

    @staticmethod
    def jvp(ctx: Any, to: Any, tW: Any, th: Any, *_: None) -> Tensor:
        return Gemv.pushforward(ctx, to, tW, th)

    @staticmethod
    def vmap(info: Any, axes: Axes, *arguments: Tensor) -> tuple[Tensor, int]:
        return map_gemv(torch, counted, gemv, arguments, axes), 0


class Outer(Bilinear):
    """o[xIdx[n, v], yIdx[n, w]] += outer(x[n, v], y[n, w])"""

    @staticmethod
    def forward(o: Tensor, x: Tensor, y: Tensor, xIdx: Tensor, yIdx: Tensor) -> Tensor:
        return outer_in_steps(o, x, y, xIdx, yIdx)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Gradients:
        _, x, y, xIdx, yIdx = ctx.saved_tensors
        transposed = cotangent.permute(1, 0, 3, 2)
        return Outer.pullback(
            ctx,
            cotangent,
            lambda: gemv(torch.zeros_like(x), transposed, y, yIdx, xIdx),
            lambda: gemv(torch.zeros_like(y), cotangent, x, xIdx, yIdx),
        )

    @staticmethod
    def jvp(ctx: Any, to: Any, tx: Any, ty: Any, *_: None) -> Tensor:
        return Outer.pushforward(ctx, to, tx, ty)

    @staticmethod
    def vmap(info: Any, axes: Axes, *arguments: Tensor) -> tuple[Tensor, int]:
        return map_outer(torch, counted, outer, arguments, axes), 0


gemv, outer = Gemv.apply, Outer.apply
