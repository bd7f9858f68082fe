"""What the arguments of an op must be when a graph is built, and what may be folded."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.op import Op
from pytensor.tensor.basic import as_tensor_variable
from pytensor.tensor.type import DenseTensorType, int_dtypes, uint_dtypes
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.signature import AXES, Signature, check_range

# What a tensor can be made of.
TensorLike: TypeAlias = Variable | Sequence[Variable] | npt.ArrayLike


class TensorOp(Op):
    """An op of one result, a tensor; to a type checker, PyTensor's may give a list as well."""

    if TYPE_CHECKING:

        def __call__(self, *inputs: Any, **kwargs: Any) -> TensorVariable: ...


def as_argument(
    signature: Signature, name: str, value: object, padding_idx: int | None = None
) -> TensorVariable:
    """Return `value` as a tensor.

    Raises
    ------
    TypeError
        If it cannot be one, or has not the dimensions, or as an index not the dtype, that `name`
        must have: of integers, `padding_idx` among them.
    """
    is_index = name in signature.indexed
    variable = (as_block_index if is_index else as_tensor)(signature.op, name, value)
    letters = signature.axes[name]
    if not isinstance(variable.type, DenseTensorType):
        raise TypeError(f"{signature.op}: {name} is a {variable.type}; expected a dense tensor")
    if variable.type.ndim != len(letters):
        raise TypeError(
            f"{signature.op}: {name} has {variable.type.ndim} dimensions; expected "
            f"{len(letters)}, of sizes ({', '.join(AXES[letter] for letter in letters)})"
        )
    if is_index:
        require_integers(signature.op, name, variable)
        require_padding(signature.op, name, variable, padding_idx)
    return variable


def check_constants(
    signature: Signature,
    arguments: Mapping[str, Variable],
    sizes: Mapping[str, int | None],
    padding_idx: int | None = None,
) -> None:
    """Raise an IndexError if an index that is a constant names no block of those known to be."""
    for name, letter in signature.indexed.items():
        index, blocks = arguments[name], sizes[letter]
        if isinstance(index, Constant) and blocks is not None:
            axis = signature.dimension_name(signature.blocks_of(name))
            check_range(f"{signature.op}: {name}", index.data, axis, blocks, padding_idx)


def as_tensor(
    op: str, name: str, value: object, convert: Callable[[Any], Any] = as_tensor_variable
) -> Any:
    """Return `value` as a tensor, or what else `convert` makes of it.

    Raises
    ------
    TypeError
        If it makes nothing of it; in words that name the argument.
    """
    try:
        return convert(value)
    except (NotImplementedError, TypeError, ValueError) as error:
        given: object = type(value)
        if isinstance(value, np.ndarray) and given is np.ndarray:
            given = f"an array of dtype {value.dtype}"
        raise TypeError(
            f"{op}: {name} is {given}, of which no tensor can be made. Expected a tensor variable, "
            "a NumPy array of numbers in the machine's byte order, or a list of them in which all "
            "rows have one length. Arrays of other libraries become NumPy's by numpy.asarray(x), "
            "SciPy's matrices by x.toarray(), other byte orders the machine's by "
            "x.astype(x.dtype.newbyteorder('='))"
        ) from error


def as_block_index(op: str, name: str, value: object) -> TensorVariable:
    """Return `value` as a tensor: a list without numbers, too, is one of integers, as in NumPy."""
    index = as_tensor(op, name, value)
    if isinstance(value, list | tuple) and 0 in index.type.shape:
        return index.astype("int64")
    return index


def require_integers(op: str, name: str, index: TensorVariable | np.ndarray) -> None:
    """Raise unless an index variable holds integers, signed or not."""
    if index.dtype not in (*int_dtypes, *uint_dtypes):
        raise TypeError(
            f"{op}: {name} has dtype {index.dtype}; block indices must be integers. "
            "A mask becomes indices by nonzero(), whole numbers by .astype('int64')"
        )


def as_padding(op: str, padding_idx: object) -> int | None:
    """Return the index that names no block as an int, or None if each names one.

    Raises
    ------
    TypeError
        If it is no integer.
    """
    if padding_idx is None:
        return None
    if isinstance(padding_idx, int | np.integer) and not isinstance(padding_idx, bool):
        return int(padding_idx)
    raise TypeError(
        f"{op}: padding_idx is {padding_idx!r}; expected None or an integer: the index that names "
        "no block, for instance -1"
    )


def require_padding(
    op: str, name: str, index: TensorVariable | np.ndarray, padding_idx: int | None
) -> None:
    """Raise unless an index variable may hold the index that names no block."""
    limits = np.iinfo(index.dtype)
    if padding_idx is not None and not limits.min <= padding_idx <= limits.max:
        raise TypeError(
            f"{op}: {name} has dtype {index.dtype}, which cannot hold padding_idx = {padding_idx}. "
            "Cast the index to a dtype that can, for instance .astype('int64'), or give another "
            "padding_idx, for instance the number of blocks"
        )


def foldable(node: Apply, check: Callable[..., object]) -> bool:
    """Whether a node's inputs are constants that pass `check`.

    What is wrong is told when the graph runs, not in the midst of rewriting it.
    """
    constants = [x for x in node.inputs if isinstance(x, Constant)]
    if len(constants) < len(node.inputs):
        return False
    try:
        check(*(x.data for x in constants))
    except (IndexError, ValueError, OverflowError):
        return False
    return True
