"""An elementwise rule over the blocks in use of some arrays: the step of an optimizer, in place."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from pytensor.graph.basic import Apply, Variable
from pytensor.link.c.op import COp
from pytensor.scalar.basic import ScalarOp, get_scalar_type
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.type import tensor

WRONG_PLACE = (
    "BlockGradient: blocks are in use that the array which is updated does not have. Give what has "
    "the shape of the weights"
)
WRONG_SIZE = (
    "BlockGradient: the new values of the blocks in use are of other sizes than the blocks of the "
    "array which is updated. Give what has the shape of the weights"
)


class UpdateBlocks(COp):
    """``array[inputBlock, outputBlock] := rule(...)`` for some arrays, element by element

    It is what reading blocks of arrays, an elementwise op and writing its results into blocks
    become, as the steps of `blocksparse_ops.updates` do: so that each block is read and written
    once, and nothing is allocated.

    Parameters
    ----------
    rule : ScalarOp
        What computes new elements from old ones and from others.
    reads, writes : tuple of int
        Which array, by its position after the blocks, each argument of the rule is read from, and
        each result is written to.
    arrays : int
        How many are of blocks; those after them are of elements of the blocks in use.
    inplace : bool, optional
        Write into the arrays themselves.
    """

    __props__ = ("rule", "reads", "writes", "arrays", "inplace")

    def __init__(
        self,
        rule: ScalarOp,
        reads: Sequence[int],
        writes: Sequence[int],
        arrays: int,
        inplace: bool = False,
    ):
        self.rule, self.reads, self.writes = rule, tuple(reads), tuple(writes)
        self.arrays, self.inplace = arrays, inplace
        if inplace:
            self.destroy_map = {k: [2 + position] for k, position in enumerate(self.writes)}

    def in_place(self) -> "UpdateBlocks":
        return UpdateBlocks(self.rule, self.reads, self.writes, self.arrays, inplace=True)

    def make_node(self, *inputs: Variable) -> Apply:
        """Of the blocks in use, by two numbers, the arrays, and what has their elements."""
        return Apply(self, list(inputs), [inputs[2 + position].type() for position in self.writes])

    def infer_shape(self, *args: Any) -> list[tuple]:
        return [args[-1][2 + position] for position in self.writes]

    def scalars(self, node: Apply) -> Apply:
        """The rule as it stands in a scalar graph."""
        inputs = (node.inputs[2 + position].type.dtype for position in self.reads)
        return self.rule.make_node(*(get_scalar_type(dtype)() for dtype in inputs))

    def perform(
        self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list]
    ) -> None:
        inputBlock, outputBlock, *operands = inputs
        place = inputBlock, outputBlock
        if not all(
            ((block >= 0) & (block < whole.shape[axis])).all()
            for whole in operands[: self.arrays]
            for axis, block in enumerate(place)
        ):
            raise IndexError(WRONG_PLACE)
        parts = [operands[position] for position in self.reads]
        for k, position in enumerate(self.reads):
            if position < self.arrays:
                parts[k] = parts[k][place]
        results = self.results(node, parts)
        for storage, position, result in zip(output_storage, self.writes, results, strict=True):
            whole = operands[position]
            if result.shape != (len(inputBlock), *whole.shape[2:]):
                raise ValueError(WRONG_SIZE)
            storage[0] = whole if self.inplace else whole.copy()
            storage[0][place] = result

    def results(self, node: Apply, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What PyTensor's elementwise op makes of the elements."""
        elementwise = Elemwise(self.rule)
        types = [
            tensor(dtype=part.dtype, shape=tuple(1 if n == 1 else None for n in part.shape))
            for part in parts
        ]
        core = elementwise.make_node(*types)
        elementwise.prepare_node(core, None, None, "py")
        storage: list[list] = [[None] for _ in core.outputs]
        elementwise.perform(core, list(parts), storage)
        return [result for [result] in storage]

    def c_compile_args(self, **kwargs: Any) -> list[str]:
        return ["-fno-math-errno"]  # which keeps roots out of vectors

    def c_support_code(self, **kwargs: Any) -> str:
        return self.rule.c_support_code(**kwargs)

    def c_code_cache_version_apply(self, node: Apply) -> tuple[Hashable, ...]:
        version = self.rule.c_code_cache_version_apply(self.scalars(node))
        return (1, version) if version else ()

    def c_support_code_apply(self, node: Apply, name: str) -> str:
        """A function of its own: in the op's, which runs once, no loops are compiled to vectors."""
        operands = [Operand(k, self, x) for k, x in enumerate(node.inputs[2:])]
        scalars, of_rule = self.scalars(node), f"{name}_rule"
        arguments = [f"in{k}" for k in range(len(self.reads))]
        results = [f"out{k}" for k in range(len(self.writes))]
        rule = self.rule.c_code(scalars, of_rule, arguments, results, {"fail": ""})

        def element(access: Callable[[Operand], str]) -> str:
            return "\n".join(
                [
                    *(
                        f"const auto in{k} = {access(operands[x])};"
                        for k, x in enumerate(self.reads)
                        if not operands[x].is_one
                    ),
                    *(f"{operands[x].scalar} out{k};" for k, x in enumerate(self.writes)),
                    rule,
                    *(f"{access(operands[x])} = out{k};" for k, x in enumerate(self.writes)),
                ]
            )

        repeated = [
            f"const auto in{k} = {operands[x].next};"
            for k, x in enumerate(self.reads)
            if operands[x].is_one
        ]
        return f"""
        {self.rule.c_support_code_apply(scalars, of_rule)}

        // Row after row; or, if no array has gaps, a block as one row.
        __attribute__((noinline)) static void update_{name}(
                const npy_int64* inputBlock, const npy_int64* outputBlock, npy_intp blocks,
                npy_intp rows, npy_intp columns, char* const* data, const npy_intp (*steps)[4]) {{
            const bool has_unit_steps = {" && ".join(x.has_unit_steps for x in operands)};
            if (has_unit_steps && {" && ".join(x.has_no_gaps for x in operands)})
                columns *= rows, rows = 1;
            for (npy_intp b = 0; b < blocks; ++b) {{
                const npy_int64 i = inputBlock[b], j = outputBlock[b];
                for (npy_intp p = 0; p < rows; ++p) {{
                    {"".join(x.row for x in operands)}
                    {"".join(repeated)}
                    if (has_unit_steps) {{
                        #pragma GCC ivdep
                        for (npy_intp q = 0; q < columns; ++q) {{
                            {element(lambda x: x.next)}
                        }}
                    }} else {{
                        for (npy_intp q = 0; q < columns; ++q) {{
                            {element(lambda x: x.at_q)}
                        }}
                    }}
                }}
            }}
        }}
        """

    def c_code(
        self, node: Apply, name: str, inputs: list[str], outputs: list[str], sub: dict[str, str]
    ) -> str:
        inputBlock, outputBlock, *arrays = inputs
        fail, wholes = sub["fail"], arrays[: self.arrays]
        operands = [Operand(k, self, x) for k, x in enumerate(node.inputs[2:])]
        is_there = [f"i < PyArray_DIM({x}, 0) && j < PyArray_DIM({x}, 1)" for x in wholes]
        fits = [operand.fits(x) for operand, x in zip(operands, arrays, strict=True)]
        results = dict(zip(self.writes, outputs, strict=True))
        place = "".join(
            f"{placed(arrays[k], result, self.inplace)} if (!{result}) {{ {fail} }}"
            for k, result in results.items()
        )
        used = [results.get(k, x) for k, x in enumerate(arrays)]
        return f"""
        {{
            const npy_intp blocks = PyArray_DIM({inputBlock}, 0);
            const npy_intp rows = PyArray_DIM({wholes[0]}, 2);
            const npy_intp columns = PyArray_DIM({wholes[0]}, 3);
            const auto of_input = static_cast<npy_int64*>(PyArray_DATA({inputBlock}));
            const auto of_output = static_cast<npy_int64*>(PyArray_DATA({outputBlock}));
            if (!({" && ".join(fits)})) {{
                PyErr_SetString(PyExc_ValueError, "{WRONG_SIZE}");
                {fail}
            }}
            for (npy_intp b = 0; b < blocks; ++b) {{
                const npy_int64 i = of_input[b], j = of_output[b];
                if (!({" && ".join(is_there)})) {{
                    PyErr_SetString(PyExc_IndexError, "{WRONG_PLACE}");
                    {fail}
                }}
            }}
            {place}
            char* const data[] = {{{", ".join(f"PyArray_BYTES({x})" for x in used)}}};
            const npy_intp steps[][4] = {{
                {", ".join(x.steps(array) for x, array in zip(operands, used, strict=True))}
            }};
            update_{name}(of_input, of_output, blocks, rows, columns, data, steps);
        }}
        """


def placed(whole: str, result: str, inplace: bool) -> str:
    """C code that sets a result to the array itself, or to a copy."""
    if inplace:
        return f"Py_INCREF({whole}); Py_XSETREF({result}, {whole});"
    copy = f"reinterpret_cast<PyArrayObject*>(PyArray_NewCopy({whole}, NPY_CORDER))"
    return f"Py_XSETREF({result}, {copy});"


class Operand:
    """C code for the elements of an array of blocks, or of what has those of the blocks in use.

    The latter's axes of length 1 are repeated.
    """

    def __init__(self, position: int, op: UpdateBlocks, x: Variable):
        self.of_blocks = position < op.arrays
        self.repeats = (False,) * 4 if self.of_blocks else x.type.broadcastable
        self.scalar = x.type.dtype_specs()[1]
        numbers = ("i", "j", "p") if self.of_blocks else ("b", "p")
        row, step = f"row{position}", f"steps[{position}]"
        start = "".join(f" + {number} * {step}[{k}]" for k, number in enumerate(numbers))
        last = len(numbers)
        self.row = f"char* const {row} = data[{position}]{start};"
        size = f"(npy_intp) sizeof({self.scalar})"
        pointer = f"reinterpret_cast<{self.scalar}*>"
        self.is_one = self.repeats[-1]  # along a row
        if self.is_one:
            self.next = self.at_q = f"*{pointer}({row})"
            self.has_unit_steps = "true"
            self.has_no_gaps = "true" if self.repeats[-2] else "rows == 1"
        else:
            self.next = f"{pointer}({row})[q]"
            self.at_q = f"*{pointer}({row} + q * {step}[{last}])"
            self.has_unit_steps = f"{step}[{last}] == {size}"
            self.has_no_gaps = f"{step}[{last - 1}] == columns * {size}"

    def steps(self, array: str) -> str:
        """From one element to the next along each axis."""
        of_axes = (
            "0" if repeats else f"PyArray_STRIDE({array}, {axis})"
            for axis, repeats in enumerate(self.repeats)
        )
        return f"{{{', '.join(of_axes)}}}"

    def fits(self, array: str) -> str:
        """Whether an array has the sizes that it must have."""
        sizes = (
            {2: "rows", 3: "columns"} if self.of_blocks else {0: "blocks", 1: "rows", 2: "columns"}
        )
        checks = [
            f"PyArray_DIM({array}, {axis}) == {size}"
            for axis, size in sizes.items()
            if not self.repeats[axis]
        ]
        return " && ".join(checks) or "true"
