"""Registers a backend's dispatch when PyTensor compiles for it: importing us loads no backend."""

from importlib import import_module

from pytensor.compile import optdb
from pytensor.compile.mode import PYTORCH
from pytensor.graph.features import Feature
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import GraphRewriter

# As PyTensor's tags name them, and as the files of this folder are called.
BACKENDS = ("numba", "jax", "pytorch", "mlx")


def load_dispatch(backend: str) -> None:
    """Import the dispatch for a backend, which registers it."""
    import_module(f"blocksparse_ops.link.{backend}")


class DispatchLoaded(Feature):
    """Stays with a graph, so that a process which unpickles it loads the dispatch, too.

    A function that was pickled is linked again without being rewritten.

    Parameters
    ----------
    backend : str
        One of `BACKENDS`.
    """

    def __init__(self, backend: str):
        self.backend = backend
        load_dispatch(backend)

    def __reduce__(self) -> tuple:
        return type(self), (self.backend,)


class LoadDispatch(GraphRewriter):
    """Load a backend's dispatch before the linker asks for it; the graph stays as it is.

    It does so for every graph, whether our ops stand in it or not: they may stand inside a
    Scan, an OpFromGraph or a Blockwise, and PyTensor loads the backend for the graph anyway.
    """

    def __init__(self, backend: str):
        super().__init__()
        self.backend = backend

    def add_requirements(self, fgraph: FunctionGraph) -> None:
        pass

    def apply(self, fgraph: FunctionGraph) -> None:
        fgraph.attach_feature(DispatchLoaded(self.backend))


# Behind all rewrites, which would call the feature at each change. The modes of a backend include
# the tag of its name. The tag blocksparse, which turns our rewrites off, must not turn this off.
for backend in BACKENDS:
    name = f"load_blocksparse_{backend}_dispatch"
    if name not in optdb.__db__:
        optdb.register(name, LoadDispatch(backend), backend, position=1000)

# Only PyTensor's mode PYTORCH has no tag of its own, so it gets one: in place, for it may have been
# imported by name already.
PYTORCH.__setstate__((PYTORCH.provided_linker, PYTORCH.provided_optimizer.including("pytorch")))
