"""Calls with a mapped axis as one call: what `vmap` makes of both ops in JAX and PyTorch.

The examples of all calls become examples of one. Weights that are mapped, too, become its blocks,
and each index names those of its own call.

`xp` is the namespace of the library, and `counted` its function of an index and a number of blocks
that counts from the start, and gives that number itself for what is out of range.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeAlias

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
    return xp.moveaxis(values, axis, 0)


def index_of_own(xp: ModuleType, counted: Callable, index: Any, blocks: int) -> Any:
    """An index, mapped in front, into the blocks of all calls one after the other."""
    count = index.shape[0]
    index = counted(index, blocks)
    first = xp.arange(count)[:, None, None] * blocks
    return xp.where(index < blocks, index + first, count * blocks)


def map_gemv(
    xp: ModuleType,
    counted: Callable,
    call: Callable,
    arguments: Sequence[Any],
    axes: Axes,
    first_axis: str = "inputIdx",
) -> Any:
    """`call` for each position of the mapped axes, which is the first of the result.

    `first_axis` is the index that names blocks along the first axis of W.
    """
    count = mapped_count(arguments, axes)
    mapped = {
        name: with_axis(xp, values, axis, count) if name != "W" or axis is not None else values
        for name, values, axis in zip(GEMV_NAMES, arguments, axes, strict=True)
    }
    shape = mapped["o"].shape
    if axes[1] is not None:
        blocks = mapped["W"].shape[1]
        mapped[first_axis] = index_of_own(xp, counted, mapped[first_axis], blocks)
        mapped["W"] = fold(mapped["W"])
    folded = [values if name == "W" else fold(values) for name, values in mapped.items()]
    return call(*folded).reshape(shape)


def map_outer(
    xp: ModuleType, counted: Callable, call: Callable, arguments: Sequence[Any], axes: Axes
) -> Any:
    """`call` for each position of the mapped axes, which is the first of the result."""
    count = mapped_count(arguments, axes)
    pairs = zip(arguments, axes, strict=True)
    o, x, y, xIdx, yIdx = (with_axis(xp, values, axis, count) for values, axis in pairs)
    xIdx = index_of_own(xp, counted, xIdx, o.shape[1])
    return call(*map(fold, (o, x, y, xIdx, yIdx))).reshape(o.shape)
