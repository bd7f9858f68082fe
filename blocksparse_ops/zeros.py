"""Zeros that stay an allocation, so that what is added to them can be added in place."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import _vectorize_node
from pytensor.link.c.op import COp
from pytensor.tensor.basic import (
    Alloc,
    as_tensor_variable,
    constant,
    get_underlying_scalar_constant_value,
)
from pytensor.tensor.blockwise import vectorize_node_fallback
from pytensor.tensor.subtensor import Subtensor, get_idx_list
from pytensor.tensor.type import TensorType, integer_dtypes, lscalar
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.arguments import TensorLike, TensorOp


def c_numbers(scalars: Iterable[str]) -> str:
    """C code that lists the numbers of arrays without axes, by their C variables."""
    return ", ".join(f"*static_cast<dtype_{x}*>(PyArray_DATA({x}))" for x in scalars)


class Allocation(TensorOp, Alloc):
    """A number at each place.

    `Alloc` rewrites the graph of the sizes to find what is known of them, which takes as long as
    all else of a gradient together.
    """

    def make_node(self, value: TensorLike, *sizes: TensorLike) -> Apply:
        number = as_tensor_variable(value)
        variables = [as_tensor_variable(size, ndim=0) for size in sizes]
        is_repeated = number.type.ndim <= len(sizes) and all(number.type.broadcastable)
        if not is_repeated or any(size.dtype not in integer_dtypes for size in variables):
            return super().make_node(number, *variables)
        known = [known_value(size) for size in variables]
        shape = tuple(None if size is None else int(size) for size in known)
        return Apply(self, [number, *variables], [TensorType(number.dtype, shape)()])


class BlockZeros(Allocation):
    """Zeros that are allocated at each call, even if their shape is known.

    PyTensor folds an `Alloc` of constant shape into a constant. A gradient's zeros are as large
    as the weights; as a constant they would be kept for good, could not be destroyed, and would
    be copied at every call.
    """

    def do_constant_folding(self, fgraph: FunctionGraph, node: Apply) -> bool:
        return False

    def c_code(
        self, node: Apply, name: str, inputs: list[str], outputs: list[str], sub: dict[str, str]
    ) -> str:
        value, *shape = inputs
        (output,) = outputs
        if not is_zeros(node.inputs[0]):
            return super().c_code(node, name, inputs, outputs, sub)
        # By calloc: fresh pages are zero, and those that nothing is added to are never touched.
        return f"""
        {{
            npy_intp shape[] = {{{c_numbers(shape)}}};
            if ({output} && PyArray_IS_C_CONTIGUOUS({output}) &&
                PyArray_CompareLists(PyArray_DIMS({output}), shape, {len(shape)})) {{
                PyArray_FILLWBYTE({output}, 0);
            }} else {{
                Py_XSETREF({output}, reinterpret_cast<PyArrayObject*>(
                    PyArray_ZEROS({len(shape)}, shape, PyArray_TYPE({value}), 0)));
                if (!{output}) {{
                    {sub["fail"]}
                }}
            }}
        }}
        """

    def c_code_cache_version(self) -> tuple[Hashable, ...]:
        return (1, *super().c_code_cache_version())


class RepeatedZero(TensorOp, COp):
    """Zeros as a view of a single one, for what reads them only.

    Parameters of a call are those of an `Alloc`.
    """

    __props__ = ()

    def __init__(self) -> None:
        self.view_map = {0: [0]}

    def make_node(self, value: TensorVariable, *sizes: TensorVariable) -> Apply:
        return Apply(self, [value, *sizes], [BlockZeros()(value, *sizes).type()])

    def infer_shape(self, *args: Any) -> list[Sequence[Variable]]:
        *_, node, _ = args
        return [node.inputs[1:]]

    def perform(
        self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list]
    ) -> None:
        value, *sizes = inputs
        output_storage[0][0] = np.broadcast_to(value, tuple(map(int, sizes)))

    def do_constant_folding(self, fgraph: FunctionGraph, node: Apply) -> bool:
        return False

    def c_code(
        self, node: Apply, name: str, inputs: list[str], outputs: list[str], sub: dict[str, str]
    ) -> str:
        value, *shape = inputs
        (output,) = outputs
        return f"""
        {{
            npy_intp shape[] = {{{c_numbers(shape)}}}, strides[{len(shape)}] = {{}};
            PyArray_Descr* descriptor = PyArray_DESCR({value});
            Py_INCREF(descriptor);
            Py_XSETREF({output}, reinterpret_cast<PyArrayObject*>(PyArray_NewFromDescr(
                &PyArray_Type, descriptor, {len(shape)}, shape, strides, PyArray_DATA({value}), 0,
                nullptr)));
            if (!{output}) {{
                {sub["fail"]}
            }}
            Py_INCREF({value});
            if (PyArray_SetBaseObject({output}, reinterpret_cast<PyObject*>({value})) < 0) {{
                {sub["fail"]}
            }}
        }}
        """

    def c_code_cache_version(self) -> tuple[Hashable, ...]:
        return (1,)


class BlockFull(Allocation):
    """A value at each place, of sizes that are read off arrays where those of `BlockZeros` are."""


@_vectorize_node.register(BlockZeros)
@_vectorize_node.register(BlockFull)
def vectorize_allocation(
    op: Alloc, node: Apply, value: TensorVariable, *sizes: TensorVariable
) -> Apply:
    """One allocation for all, if all have the same sizes: those of an array with new dimensions."""
    shared = [shared_size(size) for size in sizes]
    if value.type.ndim != node.inputs[0].type.ndim or any(size.type.ndim for size in shared):
        return vectorize_node_fallback(op, node, value, *sizes)
    return op.make_node(value, *shared)


def shared_size(size: TensorVariable) -> TensorVariable:
    """What ``x.shape[axis]`` of a vectorized `x` repeats, or else the same."""
    if size.owner is None or not isinstance(size.owner.op, Subtensor):
        return size
    shapes, *_ = size.owner.inputs
    if shapes.owner is None or not isinstance(shapes.owner.op, Alloc):
        return size
    shape = shapes.owner.inputs[0]
    *_, axis = get_idx_list(size.owner.inputs, size.owner.op.idx_list)
    return shape[axis] if shape.type.ndim == 1 == shapes.type.ndim - size.type.ndim else size


class SizeOf(TensorOp):
    """``x.shape[axis]``, of which PyTensor does not know that it is a size: it stays as it is.

    Parameters
    ----------
    axis : int
    """

    __props__ = ("axis",)

    def __init__(self, axis: int):
        self.axis = axis

    def make_node(self, x: TensorVariable) -> Apply:
        return Apply(self, [x], [lscalar()])

    def perform(
        self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list]
    ) -> None:
        output_storage[0][0] = np.asarray(inputs[0].shape[self.axis])


def zeros(shape: Iterable[TensorLike], dtype: npt.DTypeLike) -> TensorVariable:
    """Return zeros that are never folded into a constant."""
    shape = tuple(shape)
    # The value has as many dimensions as the result: PyTensor turns an Alloc that adds leading
    # dimensions of length 1 into one of fewer dimensions, and that back into a plain Alloc.
    value = constant(np.zeros((1,) * len(shape), dtype))
    return BlockZeros()(value, *shape)


def full(shape: Iterable[TensorLike], value: float, dtype: npt.DTypeLike) -> TensorVariable:
    """Return a tensor that may be folded into a constant."""
    return BlockFull()(constant(value, dtype=dtype), *shape)


def zeros_like(x: TensorVariable) -> TensorVariable:
    """Return zeros of the shape and dtype of `x` that are never folded into a constant."""
    return zeros((x.shape[axis] for axis in range(x.type.ndim)), x.dtype)


def known_value(x: Variable) -> Any:
    """What a variable is known to hold everywhere, from whatever it was built, or None."""
    value = get_underlying_scalar_constant_value(
        x, only_process_constants=False, raise_not_constant=False
    )
    return None if isinstance(value, Variable) else value


def is_zeros(x: Variable) -> bool:
    """Whether a variable is known to hold nothing but zeros."""
    value = known_value(x)
    return value is not None and bool(value == 0)
