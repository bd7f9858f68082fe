"""A view of block indices that has been checked, for ops that do not check by themselves."""

from pytensor.gradient import disconnected_type
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.graph.replace import _vectorize_node
from pytensor.tensor.basic import as_tensor_variable, cast
from pytensor.tensor.blockwise import vectorize_node_fallback

from blocksparse_ops.base import SparseBlockOp, foldable, require_integers
from blocksparse_ops.reference import first_out_of_range
from blocksparse_ops.signature import disagreement, out_of_range


class CheckBlockIndex(Op):
    """``index``, or an IndexError if one of its values lies outside [-n, n)

    PyTensor's gather does not check its indices in Numba mode. A gather of ``index`` through
    this op, and the gradient of that gather, see checked indices only.

    Parameters
    ----------
    caller : str
        The function that errors name.
    argument : str
        The name of the index in that function.
    axes : tuple of str
        What the sizes are, for instance ``("W.shape[1]", "b.shape[0]")``.
    """

    __props__ = ("caller", "argument", "axes")

    def __init__(self, caller: str, argument: str, axes: tuple[str, ...]):
        self.caller = caller
        self.argument = argument
        self.axes = tuple(axes)
        self.view_map = {0: [0]}

    __setstate__ = SparseBlockOp.__setstate__

    def make_node(self, index, *sizes):
        """
        Parameters
        ----------
        index : tensor of integers
            The block indices, any number of dimensions.
        *sizes : ()
            The number of blocks, as often as `axes` has it; all must be equal.
        """
        index = as_tensor_variable(index)
        require_integers(self.caller, self.argument, index)
        sizes = [cast(as_tensor_variable(size, ndim=0), "int64") for size in sizes]
        return Apply(self, [index, *sizes], [index.type()])

    def check(self, index, *sizes):
        """Raise what is wrong with these values."""
        blocks = int(sizes[0])
        for axis, size in zip(self.axes, sizes, strict=True):
            if size != blocks:
                raise ValueError(disagreement(self.caller, self.axes[0], blocks, axis, size))
        where = first_out_of_range(index, blocks)
        if where is not None:
            name = f"{self.caller}: {self.argument}"
            raise IndexError(out_of_range(name, where, index[where], self.axes[0], blocks))

    def perform(self, node, inputs, output_storage):
        self.check(*inputs)
        output_storage[0][0] = inputs[0]

    def do_constant_folding(self, fgraph, node):
        return foldable(node, self.check)

    def infer_shape(self, *args):
        # PyTensor 3.0 calls this with (fgraph, node, shapes), later versions with (node, shapes).
        return [args[-1][0]]

    def connection_pattern(self, node):
        return [[False] for _ in node.inputs]

    def pullback(self, inputs, outputs, cotangents):
        return [disconnected_type() for _ in inputs]

    def pushforward(self, inputs, outputs, tangents):
        return [disconnected_type()]


@_vectorize_node.register(CheckBlockIndex)
def vectorize_check_block_index(op, node, index, *sizes):
    """The check takes any number of dimensions, so new ones change nothing."""
    if any(size.type.ndim for size in sizes):
        return vectorize_node_fallback(op, node, index, *sizes)
    return op.make_node(index, *sizes)
