"""The ops in JAX: importing this registers them."""

from jax.core import Tracer
from jax.dtypes import canonicalize_dtype
from pytensor.link.jax.dispatch import jax_funcify
from pytensor.tensor.elemwise import DimShuffle

from blocksparse_ops.index import CheckBlockIndex
from blocksparse_ops.kernels.jax import gemv, outer
from blocksparse_ops.ops import SparseBlockGemv, SparseBlockOuter
from blocksparse_ops.zeros import SizeOf


def is_transposed(W):
    """Whether weights are others with the roles of input and output exchanged."""
    return (
        W.owner is not None
        and isinstance(W.owner.op, DimShuffle)
        and W.owner.op.new_order == (1, 0, 3, 2)
    )


def is_known(size):
    """Whether a size is a number while JAX traces, as those of its arrays are."""
    return not isinstance(size, Tracer)


def as_declared(node, *values):
    """Values in the dtype of a node's result: PyTensor's other ops may give JAX wider ones."""
    dtype = canonicalize_dtype(node.outputs[0].type.dtype)
    return (value.astype(dtype) for value in values)


@jax_funcify.register(SparseBlockGemv)
def jax_funcify_SparseBlockGemv(op, node, **kwargs):
    check = op.signature.check_sizes
    transposed = is_transposed(node.inputs[1])

    def sparse_block_gemv(o, W, h, inputIdx, outputIdx):
        check([x.shape for x in (o, W, h, inputIdx, outputIdx)])
        o, W, h = as_declared(node, o, W, h)
        if transposed:  # XLA takes one transposition for the other, and reads W where it lies
            W = W.transpose(1, 0, 3, 2)
        return gemv(o, W, h, inputIdx, outputIdx, transposed)

    return sparse_block_gemv


@jax_funcify.register(SparseBlockOuter)
def jax_funcify_SparseBlockOuter(op, node, **kwargs):
    check = op.signature.check_sizes

    def sparse_block_outer(o, x, y, xIdx, yIdx, alpha):
        check([*(x.shape for x in (o, x, y, xIdx, yIdx)), ()])
        o, x, y = as_declared(node, o, alpha * x, y)
        return outer(o, x, y, xIdx, yIdx)

    return sparse_block_outer


@jax_funcify.register(CheckBlockIndex)
def jax_funcify_CheckBlockIndex(op, node, **kwargs):
    # JAX cannot raise for a value when it runs: the docs say what the ops do with a wrong index.
    op.check_constant(node)

    def check_block_index(index, blocks, *sizes):
        if all(map(is_known, sizes)):
            op.check_sizes(*map(int, sizes))
        return index

    return check_block_index


@jax_funcify.register(SizeOf)
def jax_funcify_SizeOf(op, **kwargs):
    return lambda x: x.shape[op.axis]
