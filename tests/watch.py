"""What of a graph makes values as large as the weights, seen while it runs."""

import numpy as np
from pytensor.compile.mode import Mode, get_mode
from pytensor.link.vm import VMLinker
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.shape import Reshape, SpecifyShape
from pytensor.tensor.subtensor import Subtensor

from blocksparse_ops import SparseBlockOuter
from blocksparse_ops.part import SparseBlockOuterInPart
from blocksparse_ops.zeros import RepeatedZero

OUTERS = (SparseBlockOuter, SparseBlockOuterInPart)
VIEWS = (DimShuffle, RepeatedZero, Reshape, SpecifyShape, Subtensor)


class Watch:
    """Runs a mode's graphs in Python, and keeps the nodes that make so many elements."""

    def __init__(self, mode, size):
        self.size = size
        self.nodes = []
        linker = VMLinker(use_cloop=False, c_thunks=False, callback=self.look)
        self.mode = Mode(linker, get_mode(mode).optimizer)

    def look(self, node, thunk, storage_map, compute_map):
        values = [storage_map[output][0] for output in node.outputs]
        if not isinstance(node.op, VIEWS) and any(np.size(x) >= self.size for x in values):
            self.nodes.append(node)

    def assert_outers(self, count):
        assert [type(node.op) in OUTERS and node.op.destroy_map for node in self.nodes] == [
            {0: [0]}
        ] * count
