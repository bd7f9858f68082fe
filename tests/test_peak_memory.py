"""Array libraries hold the blocks of a step at a time, never all that a batch uses."""

import resource
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import LIBRARIES, Draw, Sizes, needs_library, symbols

from blocksparse_ops import sparse_block_dot

MODES = [pytest.param(mode, marks=needs_library(mode)) for mode in LIBRARIES]
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


if __name__ == "__main__":
    # One example takes what importing and compiling do, and leaves little.
    growth(sys.argv[1], 1)
    sys.stdout.write(str(growth(sys.argv[1], SIZES.batch)))


@pytest.mark.parametrize("mode", MODES)
def test_blocks_in_use_are_not_gathered_at_once(mode):
    """A copy of them for each example takes 1 GiB: the peak grows by less than a fifth of that."""
    s = SIZES
    assert s.batch * s.iWin * s.oWin * s.iSize * s.oSize * 4 == 1024 * MIB
    command = [sys.executable, __file__, mode]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 200 * MIB
