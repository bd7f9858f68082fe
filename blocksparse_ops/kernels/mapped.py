"""Calls with a mapped axis as one call: what `vmap` makes of both ops in JAX and PyTorch.

The examples of all calls become examples of one. Weights that are mapped, too, become its blocks,
and each index names those of its own call.

`xp` is the namespace of the library, and `counted` its function of an index and a number of blocks
that counts from the start, and gives that number itself for what is out of range. Where weights are
mapped, what names no block becomes NO_BLOCK, of which there is none among the blocks of all calls.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeAlias

from blocksparse_ops.kernels.tiles import is_padding
from blocksparse_ops.reference import NO_BLOCK

# The axes that are mapped; None for an argument that all calls share.
Axes: TypeAlias = Sequence[int | None]

GEMV_NAMES = ("o", "W", "h", "inputIdx", "outputIdx")


def fold(values: Any) -> Any:
    """The first two axes as one."""
    return values.reshape(values.shape[0] * values.shape[1], *values.shape[2:])


def mapped_count(arguments: Sequence[Any], axes: Axes) -> int:
    pairs = zip(arguments, axes, strict=True)
    return next(values.shape[axis] for values, axis in pairs if axis is not None)


def with_axis(xp: ModuleType, values: Any, axis: int | None, count: int) -> Any:
    """The values with the mapped axis in front, repeated if they have none."""
    if axis is None:
        return xp.broadcast_to(values, (count, *values.shape))
    # PyTorch maps `movedim` alone in a function that is mapped again.
    return getattr(xp, "movedim", xp.moveaxis)(values, axis, 0)


def no_block_of(padding: int | None) -> int | None:
    """What names no block among the numbers of blocks."""
    return None if padding is None else NO_BLOCK


def numbers_of(
    xp: ModuleType,
    counted: Callable,
    index: Any,
    blocks: int,
    padding: int | None,
    calls: int = 1,
) -> Any:
    """An index, mapped in front, into the blocks of so many calls one after the other."""
    numbers = counted(index, blocks)
    if calls > 1:
        first = xp.arange(calls)[:, None, None] * blocks
        numbers = xp.where(numbers < blocks, numbers + first, calls * blocks)
    return numbers if padding is None else xp.where(is_padding(index, padding), NO_BLOCK, numbers)


def map_gemv(
    xp: ModuleType,
    counted: Callable,
    call: Callable,
    arguments: Sequence[Any],
    axes: Axes,
    padding: int | None,
    names: tuple[str, str] = ("inputIdx", "outputIdx"),
) -> Any:
    """`call` for each position of the mapped axes, which is the first of the result.

    `names` are the indices that name blocks along the first and the second axis of W.
    """
    count = mapped_count(arguments, axes)
    mapped = {
        name: with_axis(xp, values, axis, count) if name != "W" or axis is not None else values
        for name, values, axis in zip(GEMV_NAMES, arguments, axes, strict=True)
    }
    shape = mapped["o"].shape
    if axes[1] is not None:
        for name, blocks, calls in zip(names, mapped["W"].shape[1:3], (count, 1), strict=True):
            mapped[name] = numbers_of(xp, counted, mapped[name], blocks, padding, calls)
        mapped["W"], padding = fold(mapped["W"]), no_block_of(padding)
    folded = [values if name == "W" else fold(values) for name, values in mapped.items()]
    return call(*folded, padding=padding).reshape(shape)


def map_outer(
    xp: ModuleType,
    counted: Callable,
    call: Callable,
    arguments: Sequence[Any],
    axes: Axes,
    padding: int | None,
) -> Any:
    """`call` for each position of the mapped axes, which is the first of the result."""
    count = mapped_count(arguments, axes)
    pairs = zip(arguments, axes, strict=True)
    o, x, y, xIdx, yIdx = (with_axis(xp, values, axis, count) for values, axis in pairs)
    xIdx = numbers_of(xp, counted, xIdx, o.shape[1], padding, count)
    yIdx = numbers_of(xp, counted, yIdx, o.shape[2], padding)
    folded = map(fold, (o, x, y, xIdx, yIdx))
    return call(*folded, padding=no_block_of(padding)).reshape(o.shape)
