"""What the array libraries share: most trace a function, and cannot raise for a value in it."""

from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn

from pytensor.graph.basic import Apply, Constant

from blocksparse_ops.arguments import check_constants
from blocksparse_ops.base import SparseBlockOp
from blocksparse_ops.bias import CheckedColumns, checked_columns
from blocksparse_ops.gradient import SparseBlockGradient
from blocksparse_ops.kernels.tiles import is_padding
from blocksparse_ops.signature import LARGEST


def with_sizes_checked(op: SparseBlockOp, node: Apply, function: Callable) -> Callable:
    """A function of an op's arguments that checks their sizes first; what is known is now.

    The docs say what the ops do with a wrong index that is not.
    """
    signature = op.signature
    shapes = [x.type.shape for x in node.inputs]
    sizes = signature.static_sizes(shapes)
    arguments = dict(zip(signature.names, node.inputs, strict=True))
    check_constants(signature, arguments, sizes, op.padding_idx)
    if op.padding_idx is not None and op.padding_idx > LARGEST:
        raise NotImplementedError(
            f"{signature.op}: padding_idx is {op.padding_idx}, which this backend does not compare "
            "with. Use one below 2**63, for instance the number of blocks, or mode NUMBA or CVM"
        )

    if all(None not in shape for shape in shapes):
        # At each call PyTorch compares whatever its compiler has seen: a signature's tables, too.
        signature.check_sizes(shapes)
        return function

    @wraps(function)
    def checked(*arguments: Any) -> Any:
        # An alpha may be a number.
        signature.check_sizes([getattr(x, "shape", ()) for x in arguments])
        return function(*arguments)

    return checked


def zeros_for_padding(library: Any, op: SparseBlockOp, x: Any, index: Any) -> Any:
    """The values of a window, of which those that the index pads may be anything: even a derivative
    in a scale does not see them."""
    if op.padding_idx is None:
        return x
    return library.where(is_padding(index, op.padding_idx)[:, :, None], library.zeros_like(x), x)


def scaled(library: Any, node: Apply) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """What makes of `x`, `y` and `alpha` of an outer product two that need no scale."""
    alpha = node.inputs[-1]
    if isinstance(alpha, Constant) and alpha.data != 0:
        return lambda x, y, alpha: (alpha * x, y)

    def scaled_or_nothing(x: Any, y: Any, alpha: Any) -> tuple[Any, Any]:
        # Only what is not finite is left out: a derivative in alpha, there too, needs x and y.
        x, y = (
            library.where(
                library.logical_and(alpha == 0, ~library.isfinite(z)), library.zeros_like(z), z
            )
            for z in (x, y)
        )
        return alpha * x, y

    return scaled_or_nothing


def funcify_CheckedColumns(op: CheckedColumns, **kwargs: Any) -> Callable:
    return lambda W, b: checked_columns(W.shape, b.shape)


def refuse_gradient(op: SparseBlockGradient, **kwargs: Any) -> NoReturn:
    raise NotImplementedError(
        "block_gradient: how many blocks are in use depends on the indices, and this backend "
        "compiles for known sizes. Compile in mode NUMBA or CVM; or use the dense gradient, "
        "pytensor.grad(loss, params), which blocksparse_ops.updates take in place of the loss"
    )
