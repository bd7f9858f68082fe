"""What the arguments of an op must be when a graph is built, and what may be folded."""

from pytensor.graph.basic import Constant
from pytensor.tensor.basic import as_tensor_variable
from pytensor.tensor.type import DenseTensorType, int_dtypes, uint_dtypes

from blocksparse_ops.signature import AXES


def as_argument(signature, name, value):
    """Return `value` as a tensor.

    Raises
    ------
    TypeError
        If it has not the dimensions, or as an index not the dtype, that `name` must have.
    """
    variable = as_block_index(value) if name in signature.counts else as_tensor_variable(value)
    letters = signature.axes[name]
    if not isinstance(variable.type, DenseTensorType):
        raise TypeError(f"{signature.op}: {name} is a {variable.type}; expected a dense tensor")
    if variable.type.ndim != len(letters):
        raise TypeError(
            f"{signature.op}: {name} has {variable.type.ndim} dimensions; expected "
            f"{len(letters)}, of sizes ({', '.join(AXES[letter] for letter in letters)})"
        )
    if name in signature.counts:
        require_integers(signature.op, name, variable)
    return variable


def as_block_index(value):
    """Return `value` as a tensor: a list without numbers, too, is one of integers, as in NumPy."""
    variable = as_tensor_variable(value)
    if isinstance(value, list | tuple) and 0 in variable.type.shape:
        return variable.astype("int64")
    return variable


def require_integers(op, name, index):
    """Raise unless an index variable holds integers, signed or not."""
    if index.dtype not in (*int_dtypes, *uint_dtypes):
        raise TypeError(
            f"{op}: {name} has dtype {index.dtype}; block indices must be integers. "
            "A mask becomes indices by nonzero(), whole numbers by .astype('int64')"
        )


def foldable(node, check):
    """Whether a node's inputs are constants that pass `check`.

    What is wrong is told when the graph runs, not in the midst of rewriting it.
    """
    if not all(isinstance(x, Constant) for x in node.inputs):
        return False
    try:
        check(*(x.data for x in node.inputs))
    except (IndexError, ValueError, OverflowError):
        return False
    return True
