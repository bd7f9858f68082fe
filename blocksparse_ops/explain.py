"""What of a compiled function runs on the ops, and what that is written by gathering does not."""

import functools
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import pytensor
from pytensor.graph.basic import Variable
from pytensor.graph.features import Feature
from pytensor.graph.op import Op
from pytensor.graph.traversal import walk

from blocksparse_ops.base import SparseBlockOp
from blocksparse_ops.part import SparseBlockOuterInPart
from blocksparse_ops.update_blocks import UpdateBlocks

OPS = SparseBlockOp, SparseBlockOuterInPart, UpdateBlocks


class LeftAsWritten(Feature):
    """Why rewrites left gathers as they are: kept with the graph.

    Attributes
    ----------
    reasons : dict
        For what is gathered, the reason.
    """

    def __init__(self) -> None:
        self.reasons: dict[Variable, str] = {}

    def on_attach(self, fgraph: Any) -> None:
        fgraph.left_as_written = self

    def clone(self) -> "LeftAsWritten":
        return self


def keep_reason(fgraph: Any, blocks: Variable, reason: str) -> None:
    """Keep why a gather was left, in place of what was kept of it before."""
    if not hasattr(fgraph, "left_as_written"):
        fgraph.attach_feature(LeftAsWritten())
    kept_reasons(fgraph)[blocks] = reason


def kept_reasons(fgraph: Any) -> dict[Variable, str]:
    return fgraph.left_as_written.reasons if hasattr(fgraph, "left_as_written") else {}


def explain(function: Any, file: TextIO | None = None) -> None:
    """Print which parts of a compiled function run on the ops, and which do not, and why.

    For each op it prints the line of the user's program that it comes from, and for each product
    with gathered blocks that was left as it was written that line and the reason.

    Parameters
    ----------
    function : pytensor.compile.Function
        What `pytensor.function` returns.
    file : optional
        Where to print, standard output if not given.

    Notes
    -----
    Modes `NUMBA`, `CVM` and `JAX` look for products with gathered blocks. The source of the idea is
    `pytensor.dprint`, which prints all of a function.

    Examples
    --------
    >>> import pytensor, pytensor.tensor as pt
    >>> from blocksparse_ops import explain
    >>> x, B, i = pt.dmatrix("x"), pt.dtensor3("B"), pt.lvector("i")
    >>> f = pytensor.function([x, B, i], (x[:, None, :] @ B[i])[:, 0], mode="NUMBA")
    >>> explain(f)  # doctest: +ELLIPSIS
    On the ops:
      SparseBlockGemv{inplace=False, padding_idx=None}...
    """
    print(text_of(function.maker.fgraph), file=file)


def text_of(fgraph: Any) -> str:
    graphs = list(graphs_of(fgraph))
    ours = [
        f"  {node.op}{place_of(node.outputs[0])}"
        for graph in graphs
        for node in graph.toposort()
        if isinstance(node.op, OPS)
    ]
    left = [
        f"  {reason}{place_of(blocks)}"
        for graph in graphs
        for blocks, reason in kept_reasons(graph).items()
    ]
    parts = {"On the ops": ours, "As written, by gathering": left}
    texts = ("\n".join([f"{title}:", *lines]) for title, lines in parts.items() if lines)
    return (
        "\n".join(texts) or "Nothing runs on the ops, and no product of gathered blocks was left."
    )


def graphs_of(fgraph: Any) -> Iterator[Any]:
    """A graph and those of loops and other ops in it."""
    yield fgraph
    for node in fgraph.apply_nodes:
        for inner in inner_graphs(node.op):
            yield from graphs_of(inner)


def inner_graphs(op: Op) -> list[Any]:
    """The graphs inside an op: of a lazy choice, one for each branch."""
    graphs = getattr(op, "inner_graphs", {"": getattr(op, "fgraph", None)})
    return [graph for graph in graphs.values() if hasattr(graph, "apply_nodes")]


def place_of(x: Variable) -> str:
    """The line of a program that a variable is computed for, its own or that of what it is from.

    PyTensor keeps none for gradients.
    """
    for ancestor in walk([x], parents):
        traces = getattr(ancestor.tag, "trace", None) if ancestor.owner is not None else None
        for file, line, _, text in reversed(traces[-1] if traces else ()):
            if not file.startswith(LIBRARIES):
                return f", {file}:{line}: {text}"
    return ""


def parents(x: Variable) -> Sequence[Variable]:
    return x.owner.inputs if x.owner is not None else ()


# Where lines are nobody's who wants to know.
LIBRARIES = tuple(
    str(Path(inspect.getfile(module)).parent)
    for module in (pytensor, functools, sys.modules[__package__])
)
