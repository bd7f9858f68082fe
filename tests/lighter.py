"""Less of Numba's time: importing this is enough.

LLVM takes as long as all the rest of Numba, and most of it for what PyTensor generates and a test
runs once. That is hardly optimised; our kernels, whose bits and vectors are tested, are as ever.
"""

from numba.core import config

from blocksparse_ops.kernels.numba.compile import Unit

FULLY, HARDLY = config.OPT, type(config.OPT)(1)


def load_optimised(self, scalar, which):
    config.OPT = FULLY
    try:
        load(self, scalar, which)
    finally:
        config.OPT = HARDLY


load, Unit.load = Unit.load, load_optimised
config.OPT = HARDLY
