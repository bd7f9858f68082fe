"""Blocks are never held for each example: array libraries hold those of a step, others none."""

import resource
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import LIBRARIES, Draw, Sizes, needs_library, symbols
from test_gathered import (
    BATCH,
    COLUMNS,
    FORMS,
    PLACES,
    ROWS,
    SHAPES,
    WINDOWS,
    arrays_and_variables,
    product_and_gradients,
)

from blocksparse_ops import sparse_block_dot

NATIVE = ["CVM", "NUMBA"]
MODES = [*NATIVE, *(pytest.param(mode, marks=needs_library(mode)) for mode in LIBRARIES)]
MIB = 2**20
SIZES = Sizes(iBlocks=8, oBlocks=8, iSize=32, oSize=32, iWin=8, oWin=8, batch=4096)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def growth(mode, batch):
    """How much the peak of this process grows by a product and its derivatives, in bytes."""
    arrays = Draw(replace(SIZES, batch=batch), seed=0, dtype="float32").dot()
    inputs = symbols(arrays)
    out = sparse_block_dot(*inputs.values())
    gradients = pt.grad((out**2).sum(), [inputs["W"], inputs["h"]])
    before = peak()
    function = pytensor.function([*inputs.values()], [out, *gradients], mode=mode)
    for result in function(*arrays.values()):
        np.asarray(result)  # JAX and MLX may have yet to compute it
    return peak() - before


GATHERED = {
    "einsum": ("one", FORMS["einsum"]),
    **{form: WINDOWS[form] for form in ("inputs, product and sum", "outputs, matmul")},
}


@cache
def gathered(mode, form):
    """A product and its gradients, as a function of sizes that are not known."""
    kind, compute = GATHERED[form]
    _, inputs = arrays_and_variables(SHAPES[kind], dtype="float32")
    return pytensor.function(inputs, product_and_gradients(compute, *inputs), mode=mode)


def growth_of_gathered(mode, batch):
    """The same of all that is written by gathering."""
    before = peak()
    for form, (kind, _) in GATHERED.items():
        sizes = {BATCH: batch, ROWS: SIZES.iSize, COLUMNS: SIZES.oSize, PLACES: SIZES.iWin}
        shapes = [[sizes.get(size, size) for size in shape] for shape in SHAPES[kind]]
        arrays, _ = arrays_and_variables(shapes, dtype="float32")
        gathered(mode, form)(*arrays)
    return peak() - before


if __name__ == "__main__":
    growth_of = growth_of_gathered if sys.argv[1] in NATIVE else growth
    # One example takes what importing and compiling do, and leaves little.
    growth_of(sys.argv[1], 1)
    sys.stdout.write(str(growth_of(sys.argv[1], SIZES.batch)))


@pytest.mark.parametrize("mode", MODES)
def test_blocks_in_use_are_not_gathered_at_once(mode):
    """A copy of them for each example takes 1 GiB: the peak grows by less than a fifth of that.

    What is written by gathering has one window, and a copy for it takes 128 MiB.
    """
    s = SIZES
    assert s.batch * s.iWin * s.oWin * s.iSize * s.oSize * 4 == 1024 * MIB
    command = [sys.executable, __file__, mode]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) < (60 if mode in NATIVE else 200) * MIB
