"""What the arguments of an op are called, which axes must agree, and what a bad argument is told.

Every backend checks by the tables here and reports what it found as a plain record of
integers, so that all of them raise the same message.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

import numpy as np

# What is wrong with a call. The C++ and the Numba `check` return the same numbers.
NO_FAULT, SHAPE, SIGNED_INDEX, UNSIGNED_INDEX, OVERFLOW, MEMORY = range(6)

LARGEST = 2**63 - 1

# Of an index argument: the kernels number its values, an example's one after the other.
MOST_ROWS = 2**32 - 1


@dataclass(frozen=True)
class Signature:
    """The axes of each argument, a letter an axis; equal letters are equal sizes.

    Parameters
    ----------
    op : str
        The name that errors begin with.
    axes : dict of str to str
        Argument name to its axes' letters, in the order of the op's inputs.
    indexed : dict of str to str
        Name of each index argument to the letter of the axis whose blocks it names.
    """

    op: str
    axes: dict[str, str]
    indexed: dict[str, str]

    def __post_init__(self) -> None:
        # Before Python 3.12 a property is first computed under a lock, at which PyTorch's compiler
        # would break its graph in two.
        _ = self.equal_sizes

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.axes)

    @cached_property
    def dimensions(self) -> tuple[tuple[str, int, str], ...]:
        """(argument, axis, letter) of every axis of every argument, one after the other."""
        return tuple(
            (name, axis, letter)
            for name, letters in self.axes.items()
            for axis, letter in enumerate(letters)
        )

    @cached_property
    def equal_sizes(self) -> tuple[tuple[int, int], ...]:
        """Pairs of positions in `dimensions` whose sizes must be equal.

        What is added to may be zeros that its caller has not seen: others are compared without it.
        """
        first = {
            letter: position
            for position, (name, _, letter) in reversed(list(enumerate(self.dimensions)))
            if name != "o" or letter not in "".join(list(self.axes.values())[1:])
        }
        return tuple(
            (first[letter], position)
            for position, (_, _, letter) in enumerate(self.dimensions)
            if position != first[letter]
        )

    @property
    def blocks(self) -> int:
        """Position in `names` of the argument that holds the blocks."""
        return list(self.axes.values()).index("ijpq")

    def position_of(self, letter: str) -> int:
        """Position in `dimensions` at which a letter first stands."""
        return next(k for k, (_, _, other) in enumerate(self.dimensions) if other == letter)

    def blocks_of(self, name: str) -> int:
        """Position in `dimensions` of the number of blocks that an index argument names."""
        return self.position_of(self.indexed[name])

    def gufunc(self) -> str:
        """The same as a NumPy generalised-ufunc signature; the first argument is the result."""
        cores = [f"({','.join(letters)})" for letters in self.axes.values()]
        return f"{','.join(cores)}->{cores[0]}"

    def static_sizes(self, shapes: Sequence[tuple[int | None, ...]]) -> dict[str, int | None]:
        """Merge what the inputs' static shapes say of each letter.

        Raises
        ------
        ValueError
            If two of them disagree already.
        """
        sizes = [size for shape in shapes for size in shape]
        known: dict[str, tuple[int, int]] = {}  # a letter to where it first stands, and its size
        for position, (size, (_, _, letter)) in enumerate(zip(sizes, self.dimensions, strict=True)):
            if size is None:
                continue
            first, first_size = known.setdefault(letter, (position, size))
            if first_size != size:
                raise ValueError(self._disagreement(first, first_size, position, size))
        return {
            letter: known[letter][1] if letter in known else None
            for _, _, letter in self.dimensions
        }

    def check_sizes(self, shapes: Sequence[tuple[int, ...]]) -> list[int]:
        """Return all sizes of the arguments, one after the other, or raise what is wrong.

        Raises
        ------
        ValueError
            If two sizes that must be equal differ.
        OverflowError
            If an index has 2**32 values or more, or there are 2**63 triples or more.
        """
        sizes = [size for shape in shapes for size in shape]
        for which, (one, other) in enumerate(self.equal_sizes):
            if sizes[one] != sizes[other]:
                self.raise_fault(SHAPE, which, sizes[one], sizes[other], 0, 0)
        batch, inputs, outputs = (sizes[self.position_of(letter)] for letter in "nvw")
        triples = batch * inputs * outputs
        if triples > LARGEST or (triples and batch * max(inputs, outputs) > MOST_ROWS):
            self.raise_fault(OVERFLOW, 0, 0, 0, 0, 0)
        return sizes

    def dimension_name(self, position: int) -> str:
        """What a position in `dimensions` is called in errors."""
        name, axis, _ = self.dimensions[position]
        return f"{name}.shape[{axis}]"

    def _disagreement(self, one: int, size: int, other: int, other_size: int) -> str:
        names = self.dimension_name(one), self.dimension_name(other)
        return disagreement(self.op, names[0], size, names[1], other_size)

    def raise_fault(
        self,
        kind: int,
        which: int,
        first: int,
        second: int,
        value: int,
        size: int,
        padding_idx: int | None = None,
    ) -> NoReturn:
        """Raise the error that a record stands for.

        Parameters
        ----------
        kind : int
            One of the constants of this module.
        which : int
            For SHAPE the position in `equal_sizes`, for an index the position in `names`.
        first, second : int
            For SHAPE the two sizes, for an index where the value stands.
        value, size : int
            For an index its 64 bits, and the number of blocks.
        padding_idx : int, optional
            The index that names no block.
        """
        if kind == SHAPE:
            one, other = self.equal_sizes[which]
            raise ValueError(self._disagreement(one, first, other, second))
        if kind == OVERFLOW:
            raise OverflowError(
                f"{self.op}: the batch times the length of a window must be less than 2**32, and "
                "the batch times the lengths of both less than 2**63; use a smaller batch"
            )
        if kind == MEMORY:
            raise MemoryError(f"{self.op}: no memory for the scratch space; nothing was written")
        name = self.names[which]
        if kind == UNSIGNED_INDEX:
            value %= 2**64
            padding_idx = None if padding_idx is None else padding_idx % 2**64
        axis = self.dimension_name(self.blocks_of(name))
        told = out_of_range(f"{self.op}: {name}", (first, second), value, axis, size, padding_idx)
        raise IndexError(f"{told} (in {IN_A_GRADIENT[self.op, name]})")


def disagreement(op: str, axis: str, size: int, other_axis: str, other_size: int) -> str:
    """The words for two sizes that must be equal and are not."""
    return (
        f"{op}: {axis} = {size} but {other_axis} = {other_size}. "
        "The two must be equal: nothing is broadcast here"
    )


def check_range(
    name: str, index: np.ndarray, axis: str, blocks: int, padding_idx: int | None = None
) -> None:
    """Raise an IndexError if an index, called `name`, lies outside [-blocks, blocks)."""
    where = first_out_of_range(index, blocks, padding_idx)
    if where is not None:
        raise IndexError(out_of_range(name, where, index[where], axis, blocks, padding_idx))


def first_out_of_range(
    index: np.ndarray, blocks: int, padding_idx: int | None = None
) -> tuple[int, ...] | None:
    """Position of the first index outside [-blocks, blocks) that is no padding."""
    wrong = (index < -blocks) | (index >= blocks)
    if padding_idx is not None:
        wrong &= index != padding_idx
    return tuple(np.argwhere(wrong)[0].tolist()) if wrong.any() else None


def out_of_range(
    name: str,
    where: Sequence[int],
    value: int,
    axis: str,
    size: int,
    padding_idx: int | None = None,
) -> str:
    """The words for a block index that is out of range."""
    stands = ", ".join(map(str, where))
    padding = "" if padding_idx is None else f", or be padding_idx = {padding_idx}"
    return (
        f"{name}[{stands}] = {value} is out of range: {axis} = {size}, "
        f"so a block index must lie in [{-size}, {size}){padding}"
    )


# Of the blocks in use of a gradient, and an array of another shape than the weights.
WRONG_PLACE = (
    "BlockGradient: blocks are in use that the array which is updated does not have. Give what has "
    "the shape of the weights"
)
WRONG_SIZE = (
    "BlockGradient: the new values of the blocks in use are of other sizes than the blocks of the "
    "array which is updated. Give what has the shape of the weights"
)

# What the letters of the signatures stand for.
AXES = {
    "n": "batch",
    "i": "iBlocks",
    "j": "oBlocks",
    "v": "iWin",
    "w": "oWin",
    "p": "iSize",
    "q": "oSize",
}

GEMV = Signature(
    op="SparseBlockGemv",
    axes={"o": "nwq", "W": "ijpq", "h": "nvp", "inputIdx": "nv", "outputIdx": "nw"},
    indexed={"inputIdx": "i", "outputIdx": "j"},
)

OUTER = Signature(
    op="SparseBlockOuter",
    axes={"o": "ijpq", "x": "nvp", "y": "nwq", "xIdx": "nv", "yIdx": "nw", "alpha": ""},
    indexed={"xIdx": "i", "yIdx": "j"},
)

# Of the weights only the shape matters.
GRADIENT = replace(OUTER, op="SparseBlockGradient")

# What an index is where an op computes a gradient of a product, for who has written the product.
IN_A_GRADIENT = {
    ("SparseBlockGemv", "inputIdx"): "the gradient in h: the product's outputIdx",
    ("SparseBlockGemv", "outputIdx"): "the gradient in h: the product's inputIdx",
    ("SparseBlockOuter", "xIdx"): "the gradient in W: the product's inputIdx",
    ("SparseBlockOuter", "yIdx"): "the gradient in W: the product's outputIdx",
    ("SparseBlockGradient", "xIdx"): "the gradient in W: the product's inputIdx",
    ("SparseBlockGradient", "yIdx"): "the gradient in W: the product's outputIdx",
}

DOT = Signature(
    op="sparse_block_dot",
    axes={"W": "ijpq", "h": "nvp", "inputIdx": "nv", "b": "jq", "outputIdx": "nw"},
    indexed={"inputIdx": "i", "outputIdx": "j"},
)

DOT_WITHOUT_BIAS = replace(
    DOT, axes={name: letters for name, letters in DOT.axes.items() if name != "b"}
)

TAKE = Signature(
    op="sparse_block_take", axes={"table": "jq", "index": "nw"}, indexed={"index": "j"}
)

SIGNATURES = {signature.op: signature for signature in (GEMV, OUTER, GRADIENT, DOT)}


def raise_fault(op: str, record: Sequence[int], padding: tuple[int, int]) -> NoReturn:
    """Raise what a kernel's record says of a call of the op of this name.

    `padding` is whether there is an index that names no block, and its 64 bits.
    """
    is_given, value = padding
    kind, which, first, second, of_index, size = map(int, record)
    padding_idx = int(value) if is_given else None
    SIGNATURES[op].raise_fault(kind, which, first, second, of_index, size, padding_idx)
