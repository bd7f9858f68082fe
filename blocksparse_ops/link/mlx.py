"""The ops in MLX: importing this registers them."""

from pytensor.link.mlx.dispatch import mlx_funcify

from blocksparse_ops.index import CheckBlockIndex
from blocksparse_ops.kernels.mlx import gemv, outer
from blocksparse_ops.ops import SparseBlockGemv, SparseBlockOuter


def is_known(size):
    """Whether a size is a number while MLX traces, as those of its arrays are."""
    try:
        int(size)
    except ValueError:
        return False
    return True


@mlx_funcify.register(SparseBlockGemv)
def mlx_funcify_SparseBlockGemv(op, **kwargs):
    check = op.signature.check_sizes

    def sparse_block_gemv(o, W, h, inputIdx, outputIdx):
        check([x.shape for x in (o, W, h, inputIdx, outputIdx)])
        return gemv(o, W, h, inputIdx, outputIdx)

    return sparse_block_gemv


@mlx_funcify.register(SparseBlockOuter)
def mlx_funcify_SparseBlockOuter(op, **kwargs):
    check = op.signature.check_sizes

    def sparse_block_outer(o, x, y, xIdx, yIdx, alpha):
        check([x.shape for x in (o, x, y, xIdx, yIdx, alpha)])
        return outer(o, alpha * x, y, xIdx, yIdx)

    return sparse_block_outer


@mlx_funcify.register(CheckBlockIndex)
def mlx_funcify_CheckBlockIndex(op, node, **kwargs):
    # MLX cannot raise for a value when it runs: the docs say what the ops do with a wrong index.
    op.check_constant(node)

    def check_block_index(index, blocks, *sizes):
        if all(map(is_known, sizes)):
            op.check_sizes(*map(int, sizes))
        return index

    return check_block_index
