"""Block-sparse products for PyTensor.

Importing the package registers its graph rewrites, and its dispatches for PyTensor's backends.
"""

from blocksparse_ops import link as link
from blocksparse_ops import rewrites as rewrites
from blocksparse_ops.dot import sparse_block_dot
from blocksparse_ops.gemv import SparseBlockGemv, sparse_block_gemv, sparse_block_gemv_inplace
from blocksparse_ops.outer import SparseBlockOuter, sparse_block_outer, sparse_block_outer_inplace

__version__ = "0.1.0"

__all__ = [
    "SparseBlockGemv",
    "SparseBlockOuter",
    "sparse_block_dot",
    "sparse_block_gemv",
    "sparse_block_gemv_inplace",
    "sparse_block_outer",
    "sparse_block_outer_inplace",
]
