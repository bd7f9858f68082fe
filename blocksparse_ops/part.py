"""The outer product in place in a part of an array: blocks of one layer, or of a flat vector."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from pytensor.graph.basic import Apply, Variable
from pytensor.link.c.op import OpenMPOp
from pytensor.tensor.type import tensor

from blocksparse_ops import reference
from blocksparse_ops.arguments import TensorOp
from blocksparse_ops.ops import SparseBlockOuter

NOT_WRITEABLE = (
    "SparseBlockOuter: the array that is updated in a part of it is read-only or repeats "
    "elements. Give pytensor.shared an array of its own memory"
)


class SparseBlockOuterInPart(TensorOp, OpenMPOp):
    """``whole``, with an outer product added to `part`, a view of it

    `part` holds blocks, or, if their `shape` is given, what these are if it is reshaped. It is what
    ``set_subtensor(whole[...], outer(whole[...], ...))`` becomes in place.
    """

    __props__ = ("padding_idx",)
    destroy_map = {0: [0]}  # noqa: RUF012
    destroyhandler_tolerate_aliased = ((0, 1),)

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__(openmp=False)
        self.outer = SparseBlockOuter(inplace=True, padding_idx=padding_idx)
        self.padding_idx = self.outer.padding_idx

    def make_node(self, *inputs: Variable) -> Apply:
        """Of the whole, the part, the arguments of an outer product but the first, and a shape."""
        return Apply(self, list(inputs), [inputs[0].type()])

    def outer_node(self, node: Apply) -> Apply:
        """The outer product on the blocks."""
        _, blocks, x, y, xIdx, yIdx, alpha, *shape = node.inputs
        if shape:
            blocks = tensor(dtype=x.type.dtype, shape=(None,) * 4)
        return self.outer.make_node(blocks, x, y, xIdx, yIdx, alpha)

    def perform(
        self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list]
    ) -> None:
        whole, part, x, y, xIdx, yIdx, alpha, *shape = inputs
        blocks = part.reshape(*shape) if shape else part
        result = reference.outer(
            blocks, x, y, xIdx, yIdx, alpha, inplace=True, padding_idx=self.padding_idx
        )
        if not part.flags.writeable or result is not blocks:
            raise ValueError(NOT_WRITEABLE)
        if not np.may_share_memory(blocks, part):
            part[...] = blocks.reshape(part.shape)
        output_storage[0][0] = whole

    def infer_shape(self, *args: Any) -> list[tuple]:
        return [args[-1][0]]

    def c_code(
        self, node: Apply, name: str, inputs: list[str], outputs: list[str], sub: dict[str, str]
    ) -> str:
        (whole, part, x, y, xIdx, yIdx, alpha, *shape), (output,) = inputs, outputs
        fail = f"Py_XDECREF(result); Py_XDECREF(blocks); {sub['fail']}"
        arguments = ["blocks", x, y, xIdx, yIdx, alpha]
        call = self.outer.c_code(self.outer_node(node), name, arguments, ["result"], {"fail": fail})
        if shape:
            view = f"""
            const npy_int64* const lengths = static_cast<npy_int64*>(PyArray_DATA({shape[0]}));
            npy_intp shape[] = {{lengths[0], lengths[1], lengths[2], lengths[3]}};
            PyArray_Dims sizes{{shape, 4}};
            blocks = reinterpret_cast<PyArrayObject*>(
                PyArray_Newshape({part}, &sizes, NPY_CORDER));
            """
        else:
            view = f"blocks = {part}; Py_INCREF(blocks);"
        # What is not contiguous is copied to be reshaped.
        return f"""
        {{
            PyArrayObject *blocks = nullptr, *result = nullptr;
            {view}
            if (!blocks) {{
                {fail}
            }}
            {call}
            bool is_done = PyArray_ISWRITEABLE({part}) && result == blocks;
            if (!is_done) {{
                PyErr_SetString(PyExc_ValueError, "{NOT_WRITEABLE}");
            }} else if (PyArray_DATA(blocks) != PyArray_DATA({part})) {{
                PyArray_Dims sizes{{PyArray_DIMS({part}), PyArray_NDIM({part})}};
                PyObject* values = PyArray_Newshape(blocks, &sizes, NPY_CORDER);
                is_done = values && PyArray_CopyInto(
                    {part}, reinterpret_cast<PyArrayObject*>(values)) == 0;
                Py_XDECREF(values);
            }}
            if (!is_done) {{
                {fail}
            }}
            Py_DECREF(result);
            Py_DECREF(blocks);
            Py_INCREF({whole});
            Py_XSETREF({output}, {whole});
        }}
        """

    def c_compile_args(self, **kwargs: Any) -> list[str]:
        return self.outer.c_compile_args(**kwargs)

    def c_headers(self, **kwargs: Any) -> list[str]:
        return self.outer.c_headers(**kwargs)

    def c_support_code_struct(self, node: Apply, name: str) -> str:
        return self.outer.c_support_code_struct(self.outer_node(node), name)

    def c_cleanup_code_struct(self, node: Apply, name: str) -> str:
        return self.outer.c_cleanup_code_struct(self.outer_node(node), name)

    def c_code_cache_version(self) -> tuple[Hashable, ...]:
        return (1, *self.outer.c_code_cache_version())

    def c_code_cache_version_apply(self, node: Apply) -> tuple[Hashable, ...]:
        return (1, *self.outer.c_code_cache_version_apply(self.outer_node(node)))
