"""C code of a rule for the elements of the blocks in use of some arrays."""

from collections.abc import Callable, Sequence

from blocksparse_ops.signature import WRONG_PLACE, WRONG_SIZE


class Operand:
    """C code for the elements of an array of blocks, or of what has those of the blocks in use.

    Parameters
    ----------
    position : int
        Its number among all operands.
    of_blocks : bool
        Whether it is an array of blocks.
    repeats : tuple of bool
        Of each axis, whether its one element is repeated.
    scalar : str
        The C type of an element.
    """

    def __init__(self, position: int, of_blocks: bool, repeats: tuple[bool, ...], scalar: str):
        self.of_blocks, self.repeats, self.scalar = of_blocks, repeats, scalar
        numbers = ("i", "j", "p") if of_blocks else ("b", "p")
        row, step = f"row{position}", f"steps[{position}]"
        start = "".join(f" + {number} * {step}[{k}]" for k, number in enumerate(numbers))
        last = len(numbers)
        self.row = f"char* const {row} = data[{position}]{start};"
        size = f"(npy_intp) sizeof({scalar})"
        pointer = f"reinterpret_cast<{scalar}*>"
        self.is_one = repeats[-1]  # along a row
        if self.is_one:
            self.next = self.at_q = f"*{pointer}({row})"
            self.has_unit_steps = "true"
            self.has_no_gaps = "true" if repeats[-2] else "rows == 1"
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
        axes = (None, None, "rows", "columns") if self.of_blocks else ("blocks", "rows", "columns")
        checks = [
            f"PyArray_DIM({array}, {k}) == {size}"
            for k, (size, repeats) in enumerate(zip(axes, self.repeats, strict=True))
            if size and not repeats
        ]
        return " && ".join(checks) or "true"


def define(
    name: str,
    rule: str,
    results: Sequence[str],
    operands: Sequence[Operand],
    reads: Sequence[int],
    writes: Sequence[int],
) -> str:
    """C code of a function that updates blocks.

    It is one of its own: in an op's, which runs once, no loop is compiled to vectors. `rule` is
    code that makes out0, ..., of the C types `results`, of in0, ....
    """

    def element(access: Callable[[Operand], str]) -> str:
        return "\n".join(
            [
                *(
                    f"const auto in{k} = {access(operands[x])};"
                    for k, x in enumerate(reads)
                    if not operands[x].is_one
                ),
                *(f"{scalar} out{k};" for k, scalar in enumerate(results)),
                rule,
                *(f"{access(operands[x])} = out{k};" for k, x in enumerate(writes)),
            ]
        )

    repeated = [
        f"const auto in{k} = {operands[x].next};" for k, x in enumerate(reads) if operands[x].is_one
    ]
    return f"""
    // As in numpy.hpp: a view that repeats elements may not be written, nor may a read-only array.
    static bool writeable_{name}(PyArrayObject* array) {{
        for (int axis = 0; axis < PyArray_NDIM(array); ++axis)
            if (PyArray_DIM(array, axis) > 1 && PyArray_STRIDE(array, axis) == 0)
                return PyArray_SIZE(array) == 0 && PyArray_ISWRITEABLE(array);
        return PyArray_ISWRITEABLE(array);
    }}

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


def call(
    name: str,
    blocks: Sequence[str],
    arrays: Sequence[str],
    results: dict[int, str],
    operands: Sequence[Operand],
    inplace: bool,
    fail: str,
) -> str:
    """C code that checks, and calls the function; `results` are by the position of their array."""
    inputBlock, outputBlock = blocks
    wholes = [array for array, x in zip(arrays, operands, strict=True) if x.of_blocks]
    is_there = [f"i < PyArray_DIM({x}, 0) && j < PyArray_DIM({x}, 1)" for x in wholes]
    fits = [x.fits(array) for x, array in zip(operands, arrays, strict=True)]
    place = "".join(
        f"{placed(name, arrays[k], result, inplace)} if (!{result}) {{ {fail} }}"
        for k, result in results.items()
    )
    used = [results.get(k, array) for k, array in enumerate(arrays)]
    return f"""
    {{
        const npy_intp blocks = PyArray_DIM({inputBlock}, 0);
        const npy_intp rows = PyArray_DIM({wholes[0]}, 2), columns = PyArray_DIM({wholes[0]}, 3);
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


def placed(name: str, whole: str, result: str, inplace: bool) -> str:
    """C code that sets a result to the array itself, if it may be written, or to a copy."""
    new = f"reinterpret_cast<PyArrayObject*>(PyArray_NewCopy({whole}, NPY_CORDER))"
    copy = f"Py_XSETREF({result}, {new});"
    if not inplace:
        return copy
    return f"""
        if (writeable_{name}({whole})) {{
            Py_INCREF({whole});
            Py_XSETREF({result}, {whole});
        }} else {{
            {copy}
        }}
    """
