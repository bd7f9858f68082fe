"""A rule for the elements of the blocks in use of some arrays: how many is up to the caller."""

from numba import carray
from numba.core import types
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.arrays import address_of, destination
from blocksparse_ops.kernels.numba.compile import kernel
from blocksparse_ops.signature import WRONG_PLACE, WRONG_SIZE


@intrinsic
def as_pointer(typing_context, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@kernel
def row_of(array, start, length):
    """So many elements from an address on, which Numba then knows to have no gaps."""
    return carray(as_pointer(start), length, array.dtype)


class Operand:
    """Python code for the elements of an array of blocks, or of those of the blocks in use.

    Parameters
    ----------
    position : int
        Its number among all operands.
    of_blocks : bool
        Whether it is an array of blocks.
    repeats : tuple of bool
        Of each axis, whether its one element is repeated.
    """

    def __init__(self, position, of_blocks, repeats):
        self.name, self.row = f"x{position}", f"row{position}"
        self.of_blocks, self.repeats = of_blocks, repeats
        self.axes = "ijpq" if of_blocks else "bpq"
        self.is_one = repeats[-1]  # along a row

    def at(self, last):
        """An element of a row, by its number."""
        axes = (*self.axes[:-1], last)
        numbers = ("0" if one else axis for one, axis in zip(self.repeats, axes, strict=True))
        return f"{self.name}[{', '.join(numbers)}]"

    @property
    def fits(self):
        """Whether it has the sizes that it must have."""
        sizes = {"b": "blocks", "p": "rows", "q": "columns"}
        checks = [
            f"{self.name}.shape[{k}] == {sizes[axis]}"
            for k, (axis, repeats) in enumerate(zip(self.axes, self.repeats, strict=True))
            if axis in sizes and not repeats
        ]
        return " and ".join(checks) or "True"

    @property
    def start(self):
        """The address of a row."""
        steps = [
            f"{axis} * {self.name}.strides[{k}]"
            for k, axis in enumerate(self.axes[:-1])
            if not self.repeats[k]
        ]
        return " + ".join([f"address_of({self.name})", *steps])

    @property
    def has_unit_steps(self):
        return "True" if self.is_one else f"{self.name}.strides[-1] == {self.name}.itemsize"

    @property
    def has_no_gaps(self):
        if any(self.repeats[-2:]):
            return "True" if all(self.repeats[-2:]) else "rows == 1"
        return f"{self.name}.strides[-2] == columns * {self.name}.itemsize"


def source(operands, reads, writes, inplace):
    """Python code of a function that updates blocks."""
    read, written = ([operands[k] for k in positions] for positions in (reads, writes))
    results = [f"new{k}" for k in range(len(written))]
    copy = "destination({0})" if inplace else "{0}.copy()"
    places = [f"{x.name} = {copy.format(x.name)}" for x in written]
    rows = [f"{x.row} = row_of({x.name}, {x.start}, columns)" for x in operands if not x.is_one]
    ones = {x.name: f"one_of_{x.name}" for x in operands if x.is_one}
    is_there = [f"i < {x.name}.shape[0] and j < {x.name}.shape[1]" for x in operands if x.of_blocks]

    def of_all(name):
        return " and ".join(getattr(x, name) for x in operands)

    def update(element):
        values = (ones.get(x.name) or element(x) for x in read)
        stores = (f"{element(x)} = {new}" for x, new in zip(written, results, strict=True))
        return "; ".join([f"{', '.join(results)} = rule({', '.join(values)})", *stores])

    return f"""
def update_blocks(inputBlock, outputBlock, {", ".join(x.name for x in operands)}):
    blocks, rows, columns = inputBlock.size, x0.shape[2], x0.shape[3]
    if not ({of_all("fits")}):
        raise ValueError(WRONG_SIZE)
    for b in range(blocks):
        i, j = inputBlock[b], outputBlock[b]
        if not ({" and ".join(is_there)}):
            raise IndexError(WRONG_PLACE)
    {"; ".join(places)}
    has_unit_steps = {of_all("has_unit_steps")}
    if has_unit_steps and {of_all("has_no_gaps")}:
        rows, columns = 1, rows * columns
    for b in range(blocks):
        i, j = inputBlock[b], outputBlock[b]
        for p in range(rows):
            {"; ".join(f"{ones[x.name]} = {x.at('0')}" for x in operands if x.is_one)}
            if has_unit_steps:
                {"; ".join(rows)}
                for q in range(columns):
                    {update(lambda x: f"{x.row}[q]")}
            else:
                for q in range(columns):
                    {update(lambda x: x.at("q"))}
    return {", ".join(x.name for x in written)}
"""


def compiled(text, rule):
    """The function of some source, with the function that the rule is."""
    names = {
        "__name__": __name__,
        "rule": rule,
        "row_of": row_of,
        "address_of": address_of,
        "destination": destination,
        "WRONG_PLACE": WRONG_PLACE,
        "WRONG_SIZE": WRONG_SIZE,
    }
    exec(text, names)
    return kernel(names["update_blocks"])
