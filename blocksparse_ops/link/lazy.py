"""Registers a backend's dispatch when PyTensor compiles for it: importing us loads no backend."""

import sys
from importlib import import_module

from pytensor.compile import optdb
from pytensor.compile.mode import PYTORCH
from pytensor.graph.rewriting.basic import GraphRewriter

# As PyTensor's tags name them, and as the files of this folder are called.
BACKENDS = ("numba", "jax", "pytorch", "mlx")


def dispatch_of(backend):
    return f"blocksparse_ops.link.{backend}"


def load_dispatch(backend):
    """Import the dispatch for a backend, which registers it."""
    import_module(dispatch_of(backend))


def is_loaded(backend):
    return dispatch_of(backend) in sys.modules


class LoadDispatch(GraphRewriter):
    """Load a backend's dispatch before the linker asks for it; the graph stays as it is.

    It does so for every graph, whether our ops stand in it or not: they may stand inside a
    Scan, an OpFromGraph or a Blockwise, and PyTensor loads the backend for the graph anyway.
    """

    def __init__(self, backend):
        super().__init__()
        self.backend = backend

    def add_requirements(self, fgraph):
        pass

    def apply(self, fgraph):
        load_dispatch(self.backend)


# The modes of a backend include the tag of its name. The tag blocksparse, which turns our rewrites
# off, must not turn this off.
for backend in BACKENDS:
    name = f"load_blocksparse_{backend}_dispatch"
    if name not in optdb.__db__:
        optdb.register(name, LoadDispatch(backend), backend, position=0)

# Only PyTensor's mode PYTORCH has no tag of its own, so it gets one: in place, for it may have been
# imported by name already.
PYTORCH.__setstate__((PYTORCH.provided_linker, PYTORCH.provided_optimizer.including("pytorch")))
