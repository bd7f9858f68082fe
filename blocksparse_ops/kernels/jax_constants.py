"""Indices that are constants of what JAX compiles: NumPy looks at them, once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from blocksparse_ops.kernels.tiles import Form, Sizes, Tiles, count_from_start, cut, is_unknown


@dataclass(frozen=True, eq=False)
class Constants:
    """The values of both indices where they are constants of what is compiled.

    XLA would sort them, too, but takes seconds for it.
    """

    left: np.ndarray
    right: np.ndarray

    def exchanged(self) -> "Constants":
        return Constants(self.right, self.left)

    def shared_windows(self, blocks: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
        """The window of each side that all examples have, counted from the start, if they do."""
        if len(self.left) < 2 or any((x != x[:1]).any() for x in (self.left, self.right)):
            return None
        i, j = (
            count_from_start(np, x[0], count, int)
            for x, count in zip((self.left, self.right), blocks, strict=True)
        )
        are_in_range = (i < blocks[0]).all() and (j < blocks[1]).all()
        return (i, j) if are_in_range else None


def cut_by_block(
    left: Array,
    right: Array,
    sizes: Sizes,
    form: Form,
    padding: int | None,
    constants: Constants | None,
) -> Tiles:
    """Cut the triples into tiles, constants by NumPy when the product is compiled."""
    if constants is None:
        return cut(jnp, left, right, sizes, form)
    tiles = cut(
        np,
        count_from_start(np, constants.left, sizes.iBlocks, int, padding),
        count_from_start(np, constants.right, sizes.oBlocks, int, padding),
        sizes,
        form,
    )
    arrays = {name: getattr(tiles, name) for name in ("inputIdx", "outputIdx", "order", "starts")}
    arrays = {name: None if x is None else jnp.asarray(x) for name, x in arrays.items()}
    return tiles._replace(**arrays, steps=int(tiles.steps))


def places_of(
    inputIdx: Array,
    outputIdx: Array,
    blocks: Sequence[int],
    padding: int | None,
    constants: Constants | None,
) -> tuple[Array, Array, Array | None]:
    """The blocks of both indices, and which rows of the output are unknown, if any can be.

    Constants are looked at by NumPy: XLA would go over the output once more, not knowing that all
    rows are known.
    """
    xp: Any = jnp
    if constants is not None:
        xp, inputIdx, outputIdx = np, constants.left, constants.right
    iBlocks, oBlocks = blocks
    i = count_from_start(xp, inputIdx, iBlocks, int, padding)
    j = count_from_start(xp, outputIdx, oBlocks, int, padding)
    wrong = is_unknown(xp, inputIdx, outputIdx, i, j, blocks, padding)
    can_be_wrong = constants is None or wrong.any()
    return jnp.asarray(i), jnp.asarray(j), wrong if can_be_wrong else None
