"""Registers the Numba dispatch when PyTensor compiles for Numba: importing us loads no Numba."""

from pytensor.compile import optdb
from pytensor.graph.rewriting.basic import GraphRewriter


def load_numba_dispatch():
    """Import the Numba dispatch, which registers it."""
    import blocksparse_ops.link.numba  # noqa: F401


class LoadNumbaDispatch(GraphRewriter):
    """Load the Numba dispatch before the linker asks for it; the graph stays as it is.

    It does so for every graph, whether our ops stand in it or not: they may stand inside a
    Scan, an OpFromGraph or a Blockwise, and PyTensor loads Numba for the graph anyway.
    """

    def add_requirements(self, fgraph):
        pass

    def apply(self, fgraph):
        load_numba_dispatch()


# Every Numba mode includes the tag numba, even one without an optimizer. The tag blocksparse,
# which turns our rewrites off, must not turn this off.
NAME = "load_blocksparse_numba_dispatch"
if NAME not in optdb.__db__:
    optdb.register(NAME, LoadNumbaDispatch(), "numba", position=0)
