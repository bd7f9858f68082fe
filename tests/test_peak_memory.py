"""Blocks are never held for each example: array libraries hold those of a step, others none."""

import resource
from dataclasses import replace
from functools import cache

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import LIBRARIES, Draw, Sizes, needs_library, symbols
from fresh import in_a_fresh_process
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


def problem(form, batch, is_static=False):
    """Arrays of a form, variables for these, and a product and its gradients."""
    kind, compute = GATHERED[form]
    sizes = {BATCH: batch, ROWS: SIZES.iSize, COLUMNS: SIZES.oSize, PLACES: SIZES.iWin}
    shapes = [[sizes.get(size, size) for size in shape] for shape in SHAPES[kind]]
    arrays, inputs = arrays_and_variables(shapes, is_static, dtype="float32")
    return arrays, inputs, product_and_gradients(compute, *inputs)


@cache
def gathered(mode, form):
    """A function of sizes that are not known."""
    _, inputs, outputs = problem(form, BATCH)
    return pytensor.function(inputs, outputs, mode=mode)


def growth_of_gathered(mode, batch):
    """The same of all that is written by gathering."""
    before = peak()
    for form in GATHERED:
        arrays, *_ = problem(form, batch)
        gathered(mode, form)(*arrays)
    return peak() - before


def growth_of_gathered_in_jax(mode, batch):
    """The same of sizes that are known: to compile for them takes memory, too."""
    before = peak()
    for form in GATHERED:
        arrays, inputs, outputs = problem(form, batch, is_static=True)
        pytensor.function(inputs, outputs, mode=mode)(*arrays)
    return peak() - before


def growth_by_a_batch(growth_of, mode):
    # One example takes what importing and compiling do, and leaves little.
    growth_of(mode, 1)
    return growth_of(mode, SIZES.batch)


@pytest.mark.parametrize(
    ("growth_of", "mode", "most"),
    [
        *((growth_of_gathered, mode, 60) for mode in NATIVE),
        *(pytest.param(growth, mode, 200, marks=needs_library(mode)) for mode in LIBRARIES),
        pytest.param(growth_of_gathered_in_jax, "JAX", 200, marks=needs_library("JAX")),
    ],
)
def test_blocks_in_use_are_not_gathered_at_once(growth_of, mode, most):
    """A copy of them for each example takes 1 GiB: the peak grows by less than a fifth of that.

    What is written by gathering has one window, and a copy for it takes 128 MiB.
    """
    s = SIZES
    assert s.batch * s.iWin * s.oWin * s.iSize * s.oSize * 4 == 1024 * MIB
    assert in_a_fresh_process(growth_by_a_batch, growth_of, mode) < most * MIB
