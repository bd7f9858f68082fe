"""Rows of a table as a block-sparse product: their gradient is sparse, and a step is in place."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from pytensor.gradient import disconnected_type
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.replace import _vectorize_node
from pytensor.link.c.op import COp
from pytensor.tensor.type import lscalar
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.arguments import TensorOp
from blocksparse_ops.ops import SparseBlockGemv
from blocksparse_ops.signature import DOT, LARGEST, SHAPE
from blocksparse_ops.zeros import full

# Which of the pairs of sizes that must be equal are those of `b`.
BLOCKS, COLUMNS = (
    which
    for which, (_, position) in enumerate(DOT.equal_sizes)
    if DOT.dimensions[position][0] == "b"
)


def add_rows(
    o: TensorVariable,
    table: TensorVariable,
    index: TensorVariable,
    batch: TensorVariable,
    padding_idx: int | None = None,
) -> TensorVariable:
    """``o[n, w] + table[index[n, w]]``: of an input block of size 1, each example uses a one."""
    only_block = -1 if padding_idx == 0 else 0  # the same block, by the number that pads nothing
    dtype = "uint64" if padding_idx is not None and padding_idx > LARGEST else "int64"
    one, block = full((batch, 1, 1), 1, o.dtype), full((batch, 1), only_block, dtype)
    op = SparseBlockGemv(padding_idx=padding_idx)
    return op(o, table[None, :, None, :], one, block, index)


def columns_of(W: TensorVariable, b: TensorVariable) -> TensorVariable:
    """``W.shape[3]``, checked against `b` if it is not known that the two fit."""
    known = [W.type.shape[1], W.type.shape[3], *b.type.shape]
    return CheckedColumns()(W, b) if None in known else W.shape[3]


class CheckedColumns(TensorOp, COp):
    """``W.shape[3]``, or a ValueError if `b` has not as many blocks and columns as `W`

    No product can tell: it knows but the rows of `b` that are in use. Any axes may precede those
    of `W` and `b`.
    """

    __props__ = ()

    def make_node(self, W: TensorVariable, b: TensorVariable) -> Apply:
        return Apply(self, [W, b], [lscalar()])

    def perform(
        self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list]
    ) -> None:
        W, b = inputs
        output_storage[0][0] = np.asarray(checked_columns(W.shape, b.shape), "int64")

    def c_code(
        self, node: Apply, name: str, inputs: list[str], outputs: list[str], sub: dict[str, str]
    ) -> str:
        (W, b), (columns,) = inputs, outputs
        return f"""
        {{
            const npy_intp* const sizes = PyArray_DIMS({W}) + PyArray_NDIM({W}) - 4;
            const npy_intp* const others = PyArray_DIMS({b}) + PyArray_NDIM({b}) - 2;
            if (sizes[1] != others[0] || sizes[3] != others[1]) {{
                PyObject* module = PyImport_ImportModule("blocksparse_ops.bias");
                PyObject* result = !module ? nullptr : PyObject_CallMethod(
                    module, "checked_columns", "(nnnn)(nn)", sizes[0], sizes[1], sizes[2],
                    sizes[3], others[0], others[1]);
                Py_XDECREF(result);
                Py_XDECREF(module);
                {sub["fail"]}
            }}
            if (!{columns})
                {columns} = reinterpret_cast<PyArrayObject*>(
                    PyArray_EMPTY(0, nullptr, NPY_INT64, 0));
            if (!{columns}) {{
                {sub["fail"]}
            }}
            *static_cast<npy_int64*>(PyArray_DATA({columns})) = sizes[3];
        }}
        """

    def c_code_cache_version(self) -> tuple[Hashable, ...]:
        return (1,)

    def infer_shape(self, *args: Any) -> list[tuple]:
        return [()]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[False], [False]]

    def pullback(
        self,
        inputs: Sequence[Variable],
        outputs: Sequence[Variable],
        cotangents: Sequence[Variable],
    ) -> list[Variable]:
        return [disconnected_type(), disconnected_type()]

    def pushforward(
        self,
        inputs: Sequence[Variable],
        outputs: Sequence[Variable],
        tangents: Sequence[Variable],
    ) -> list[Variable]:
        return [disconnected_type()]


def checked_columns(W_shape: Sequence[int], b_shape: Sequence[int]) -> int:
    """The last size of `W`.

    Raises
    ------
    ValueError
        If it is not the last of `b`, or the numbers of blocks differ.
    """
    *_, blocks, _, columns = W_shape
    *_, b_blocks, b_columns = b_shape
    if blocks != b_blocks:
        DOT.raise_fault(SHAPE, BLOCKS, blocks, b_blocks, 0, 0)
    if columns != b_columns:
        DOT.raise_fault(SHAPE, COLUMNS, columns, b_columns, 0, 0)
    return columns


@_vectorize_node.register(CheckedColumns)
def vectorize_checked_columns(
    op: CheckedColumns, node: Apply, W: TensorVariable, b: TensorVariable
) -> Apply:
    return op.make_node(W, b)
