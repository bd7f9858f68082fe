"""Block-sparse products for PyTensor.

Importing the package registers its graph rewrites, and its dispatches for PyTensor's backends.
"""

from importlib import import_module

from blocksparse_ops import link as link

try:
    rewrites = import_module("blocksparse_ops.rewrites")
except ModuleNotFoundError as error:
    if error.name != "blocksparse_ops.rewrites":
        raise
    raise ModuleNotFoundError(
        f"{__path__[0]} is a folder of a checkout; its rewrites become blocksparse_ops.rewrites "
        "when the package is installed. Run `python -m pip install -e .` in the checkout, or, if "
        "it is installed, start Python in another folder",
        name=error.name,
    ) from None

from blocksparse_ops.block_gradient import block_gradient
from blocksparse_ops.dot import sparse_block_dot
from blocksparse_ops.explain import explain
from blocksparse_ops.gradient import BlockGradient
from blocksparse_ops.ops import (
    SparseBlockGemv,
    SparseBlockOuter,
    sparse_block_gemv,
    sparse_block_gemv_inplace,
    sparse_block_outer,
    sparse_block_outer_inplace,
)
from blocksparse_ops.softmax import h_softmax, log_h_softmax
from blocksparse_ops.take import sparse_block_take

__version__ = "0.1.0"

__all__ = [
    "BlockGradient",
    "SparseBlockGemv",
    "SparseBlockOuter",
    "block_gradient",
    "explain",
    "h_softmax",
    "log_h_softmax",
    "sparse_block_dot",
    "sparse_block_gemv",
    "sparse_block_gemv_inplace",
    "sparse_block_outer",
    "sparse_block_outer_inplace",
    "sparse_block_take",
]
