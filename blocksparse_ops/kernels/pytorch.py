"""Both ops for PyTorch, which differentiate into each other."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from blocksparse_ops.kernels.mapped import Axes, map_gemv, map_outer
from blocksparse_ops.kernels.pytorch_steps import (
    AT_ONCE_ELEMENTS,
    counted,
    fusing_pays,
    gemv_fused,
    gemv_in_steps,
    outer_at_once,
    outer_in_steps,
)

# In each argument, None where there is nothing.
Gradients: TypeAlias = tuple[Tensor | None, ...]


class Bilinear(torch.autograd.Function):
    """What is added to, and a term that is linear in each of two factors."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.checked_already, ctx.padding = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @classmethod
    def pushforward(
        cls, ctx: Any, to: Tensor | None, t_one: Tensor | None, t_other: Tensor | None
    ) -> Tensor:
        """The tangent: that of o, with a term for each factor that has one."""
        o, one, other, *indices = ctx.saved_tensors
        rest = *indices, ctx.checked_already, ctx.padding
        tangent = torch.zeros_like(o) if to is None else to
        if t_one is not None:
            tangent = cls.apply(tangent, t_one, other, *rest)
        if t_other is not None:
            tangent = cls.apply(tangent, one, t_other, *rest)
        return tangent

    @staticmethod
    def pullback(
        ctx: Any, cotangent: Tensor, to_one: Callable[[], Tensor], to_other: Callable[[], Tensor]
    ) -> Gradients:
        """The gradients: that of o, and of each factor that needs one."""
        _, needs_one, needs_other, *_ = ctx.needs_input_grad
        one, other = to_one() if needs_one else None, to_other() if needs_other else None
        return cotangent, one, other, None, None, None, None


class Gemv(Bilinear):
    """o[n, w] + sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]"""

    @staticmethod
    def forward(
        o: Tensor,
        W: Tensor,
        h: Tensor,
        inputIdx: Tensor,
        outputIdx: Tensor,
        checked_already: bool,
        padding: int | None,
    ) -> Tensor:
        if torch.compiler.is_compiling() and fusing_pays(W, inputIdx, outputIdx):
            return gemv_fused(o, W, h, inputIdx, outputIdx, checked_already, padding)
        return gemv_in_steps(o, W, h, inputIdx, outputIdx, padding)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Gradients:
        _, W, h, inputIdx, outputIdx = ctx.saved_tensors
        transposed, rest = W.permute(1, 0, 3, 2), (ctx.checked_already, ctx.padding)
        return Gemv.pullback(
            ctx,
            cotangent,
            lambda: outer(torch.zeros_like(W), h, cotangent, inputIdx, outputIdx, *rest),
            lambda: gemv(torch.zeros_like(h), transposed, cotangent, outputIdx, inputIdx, *rest),
        )

    @staticmethod
    def jvp(ctx: Any, to: Any, tW: Any, th: Any, *_: None) -> Tensor:
        return Gemv.pushforward(ctx, to, tW, th)

    @staticmethod
    def vmap(info: Any, axes: Axes, *arguments: Any) -> tuple[Tensor, int]:
        *tensors, _, padding = arguments
        return map_gemv(torch, counted, gemv, tensors, axes[:-2], padding), 0


class Outer(Bilinear):
    """o[xIdx[n, v], yIdx[n, w]] += outer(x[n, v], y[n, w])"""

    @staticmethod
    def forward(
        o: Tensor,
        x: Tensor,
        y: Tensor,
        xIdx: Tensor,
        yIdx: Tensor,
        checked_already: bool,
        padding: int | None,
    ) -> Tensor:
        elements = xIdx.numel() * yIdx.shape[1] * o.shape[2] * o.shape[3]
        if torch.compiler.is_compiling() and checked_already and 0 < elements <= AT_ONCE_ELEMENTS:
            return outer_at_once(o, x, y, xIdx, yIdx, padding)
        return outer_in_steps(o, x, y, xIdx, yIdx, checked_already, padding)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Gradients:
        _, x, y, xIdx, yIdx = ctx.saved_tensors
        transposed, rest = cotangent.permute(1, 0, 3, 2), (ctx.checked_already, ctx.padding)
        return Outer.pullback(
            ctx,
            cotangent,
            lambda: gemv(torch.zeros_like(x), transposed, y, yIdx, xIdx, *rest),
            lambda: gemv(torch.zeros_like(y), cotangent, x, xIdx, yIdx, *rest),
        )

    @staticmethod
    def jvp(ctx: Any, to: Any, tx: Any, ty: Any, *_: None) -> Tensor:
        return Outer.pushforward(ctx, to, tx, ty)

    @staticmethod
    def vmap(info: Any, axes: Axes, *arguments: Any) -> tuple[Tensor, int]:
        *tensors, _, padding = arguments
        return map_outer(torch, counted, outer, tensors, axes[:-2], padding), 0


def gemv(
    o: Tensor,
    W: Tensor,
    h: Tensor,
    inputIdx: Tensor,
    outputIdx: Tensor,
    checked_already: bool = False,
    padding: int | None = None,
) -> Tensor:
    """o[n, w] + sum_v h[n, v] @ W[inputIdx[n, v], outputIdx[n, w]]

    With `checked_already` the indices are in range, and of the type that PyTorch indexes with.
    """
    return Gemv.apply(o, W, h, inputIdx, outputIdx, checked_already, padding)


def outer(
    o: Tensor,
    x: Tensor,
    y: Tensor,
    xIdx: Tensor,
    yIdx: Tensor,
    checked_already: bool = False,
    padding: int | None = None,
) -> Tensor:
    """o[xIdx[n, v], yIdx[n, w]] += outer(x[n, v], y[n, w])"""
    return Outer.apply(o, x, y, xIdx, yIdx, checked_already, padding)
