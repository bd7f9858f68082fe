"""What JAX and MLX share: they trace a function, and cannot raise for a value when it runs."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from pytensor.graph.basic import Apply

from blocksparse_ops.base import SparseBlockOp
from blocksparse_ops.index import CheckBlockIndex


def with_sizes_checked(op: SparseBlockOp, function: Callable) -> Callable:
    """A function of an op's arguments that checks their sizes first."""

    @wraps(function)
    def checked(*arguments: Any) -> Any:
        # An alpha may be a number.
        op.signature.check_sizes([getattr(x, "shape", ()) for x in arguments])
        return function(*arguments)

    return checked


def numbers(sizes: Iterable[Any]) -> list[int] | None:
    """Sizes as numbers, as those of arrays are, or None where one is traced."""
    try:
        return [int(size) for size in sizes]
    except (TypeError, ValueError):
        return None


def funcify_CheckBlockIndex(op: CheckBlockIndex, node: Apply, **kwargs: Any) -> Callable:
    """Check what is known; the docs say what the ops do with a wrong index."""
    op.check_constant(node)

    def check_block_index(index: Any, blocks: Any, *sizes: Any) -> Any:
        if (known := numbers(sizes)) is not None:
            op.check_sizes(*known)
        return index

    return check_block_index
