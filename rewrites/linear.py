"""What a node is linear in: its terms, their scales, and where in the result they lie."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from pytensor import scalar as ps
from pytensor.graph.basic import Apply, Constant
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.basic import as_tensor_variable, cast, constant, switch
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.math import mul, true_div
from pytensor.tensor.shape import Reshape, Shape_i
from pytensor.tensor.subtensor import IncSubtensor, Subtensor
from pytensor.tensor.type import float_dtypes
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.ops import SparseBlockOuter
from blocksparse_ops.rewrites.match import is_elementwise
from blocksparse_ops.zeros import is_zeros


@dataclass(frozen=True)
class Scale:
    """A product of 0-d factors over one of divisors, and 0 unless all guards are as they should be.

    Not one of factors and reciprocals: PyTensor's Python code for a fused reciprocal has the
    precision of float32. Nor is a guard a factor of 0 or 1: the others may be NaN where it is 0.
    """

    factors: tuple[TensorVariable, ...] = ()
    divisors: tuple[TensorVariable, ...] = ()
    guards: tuple[tuple[TensorVariable, bool], ...] = ()

    def __mul__(self, other: "Scale") -> "Scale":
        return Scale(
            self.factors + other.factors,
            self.divisors + other.divisors,
            self.guards + other.guards,
        )

    def guarded(self, condition: TensorVariable, wanted: bool) -> "Scale":
        return replace(self, guards=(*self.guards, (condition, wanted)))

    def times(self, alpha: TensorVariable) -> TensorVariable:
        """What scales an outer product that `alpha` scales, in its dtype."""
        return (self * Scale((alpha,))).variable(alpha.dtype)

    def variable(self, dtype: str) -> TensorVariable:
        scale = product(self.factors) if self.factors else constant(1, dtype=dtype)
        if self.divisors:
            scale = true_div(scale, product(self.divisors))
        for condition, wanted in self.guards:
            zero = constant(0, dtype=scale.dtype)
            scale = switch(condition, scale, zero) if wanted else switch(condition, zero, scale)
        return scale


def product(factors: Sequence[TensorVariable]) -> TensorVariable:
    return mul(*factors) if len(factors) > 1 else factors[0]


@cache
def minus_one(dtype: str) -> Scale:
    """One for all nodes: scales are compared, and two constants of PyTensor's differ."""
    return Scale((constant(-1, dtype=dtype),))


def is_scalar(x: TensorVariable) -> bool:
    """Whether a variable has one element, of whatever number of dimensions."""
    return all(x.type.broadcastable)


def as_scalar(x: TensorVariable, dtype: str) -> TensorVariable:
    """A variable of one element, of whatever number of dimensions, as one of none."""
    if x.owner is not None and isinstance(x.owner.op, DimShuffle) and x.owner.inputs[0].ndim == 0:
        x = x.owner.inputs[0]
    return cast(x.dimshuffle(), dtype)


class Term(NamedTuple):
    """A term of a node; `step` is that node where the term lies elsewhere in its result."""

    scale: Scale
    variable: TensorVariable
    step: Apply | None = None


def linear_terms(node: Apply) -> list[Term]:
    """The terms of a node that is linear in them, else nothing.

    The term of an outer is what it adds to.
    """
    if isinstance(node.op, SparseBlockOuter):
        return [] if node.op.inplace else [Term(Scale(), node.inputs[0])]
    if is_dropping(node) or isinstance(node.op, Reshape):
        return [Term(Scale(), node.inputs[0], node)]
    if isinstance(node.op, IncSubtensor):
        return terms_of_write(node)
    if is_elementwise(node, ps.Cast):
        [x], [out] = node.inputs, node.outputs
        return [Term(Scale(), x)] if keeps_dtype(x, out) else []
    if is_elementwise(node, ps.Add):
        return [Term(Scale(), x) for x in node.inputs]
    if is_elementwise(node, ps.Sub):
        one, other = node.inputs
        return [Term(Scale(), one), Term(minus_one(node.outputs[0].dtype), other)]
    if is_elementwise(node, ps.Neg):
        return [Term(minus_one(node.outputs[0].dtype), node.inputs[0])]
    if is_elementwise(node, ps.Mul):
        return scaled_term(node, node.inputs, [])
    if is_elementwise(node, ps.TrueDiv):
        return scaled_term(node, node.inputs[:1], node.inputs[1:])
    return []


def is_dropping(node: Apply | None) -> bool:
    """Whether a node changes the order of axes, and drops some of length 1, and that is all."""
    return node is not None and isinstance(node.op, DimShuffle) and "x" not in node.op.new_order


def terms_of_write(node: Apply) -> list[Term]:
    """What is added to a part of something, and that; or what is written into zeros."""
    whole, part, *_ = node.inputs
    if part.type.broadcastable != read_part(node, whole).type.broadcastable:
        return []
    written = Term(Scale(), part, node)
    if is_zeros(whole) or not node.op.set_instead_of_inc:
        return [Term(Scale(), whole), written]
    return []


def scaled_term(
    node: Apply, factors: Sequence[TensorVariable], divisors: Sequence[TensorVariable]
) -> list[Term]:
    """The one factor that is an array of the result's axes, if all others are scalars."""
    [out] = node.outputs
    terms = [
        x
        for x in factors
        if not is_scalar(x)
        or (x.dtype == out.dtype and x.type.broadcastable == out.type.broadcastable)
    ]
    scalars = [x for x in factors if x not in terms]
    if len(terms) != 1 or not keeps_dtype(terms[0], out) or not all(map(is_scalar, divisors)):
        return []
    as_scalars = (tuple(as_scalar(x, out.dtype) for x in xs) for xs in (scalars, divisors))
    return [Term(Scale(*as_scalars), terms[0])]


def keeps_dtype(x: TensorVariable, out: TensorVariable) -> bool:
    """Whether a variable has the dtype of a result, or another precision of it."""
    return x.dtype == out.dtype or {x.dtype, out.dtype} <= set(float_dtypes)


def branches(node: Apply) -> tuple[TensorVariable, TensorVariable, TensorVariable] | None:
    """The condition of a choice by a scalar, and what is chosen if it holds and if not."""
    if not is_elementwise(node, ps.Switch) or not is_scalar(node.inputs[0]):
        return None
    condition, *chosen = node.inputs
    [out] = node.outputs
    # A number that one writes is of the least dtype that holds it.
    chosen = [constant(x.data.astype(out.dtype)) if isinstance(x, Constant) else x for x in chosen]
    return (condition, *chosen) if {x.dtype for x in chosen} == {out.dtype} else None


@dataclass(frozen=True)
class Place:
    """Where a term lies in a sum: the nodes that put it there, the last one first."""

    steps: tuple[Apply, ...] = ()

    def below(self, step: Apply | None) -> "Place":
        return self if step is None else Place((*self.steps, step))

    @property
    def key(self) -> tuple:
        """Equal for places that are the same."""
        return tuple(step_key(step) for step in self.steps)

    @property
    def is_rearranged(self) -> bool:
        """Whether the term is the sum with its axes in some order, without some of length 1."""
        return all(is_dropping(step) for step in self.steps)

    @property
    def is_part(self) -> bool:
        return any(isinstance(step.op, IncSubtensor) for step in self.steps)

    def axes(self, ndim: int) -> tuple[int, ...]:
        """Which axes of a rearranged term of `ndim` axes those of the sum are."""
        axes = tuple(range(self.steps[0].outputs[0].type.ndim if self.steps else ndim))
        for step in self.steps:
            axes = tuple(step.op.new_order[axis] for axis in axes)
        return axes

    def whole(self, term: TensorVariable) -> TensorVariable:
        """A variable with the axes of the sum that holds the term."""
        return self.steps[0].outputs[0] if self.steps else term

    def read(self, fgraph: FunctionGraph, total: TensorVariable) -> TensorVariable:
        """What the sum holds there."""
        for step in self.steps:
            total = read_step(fgraph, step, total)
        return total

    def write(
        self, fgraph: FunctionGraph, total: TensorVariable | None, term: TensorVariable
    ) -> TensorVariable:
        """The sum with the term there; `total` may be None where the term is all of it."""
        if not self.steps:
            return term
        step, below = self.steps[0], Place(self.steps[1:])
        part = read_step(fgraph, step, total) if total is not None and below.is_part else None
        return write_step(fgraph, step, total, below.write(fgraph, part, term))


def fits(term: TensorVariable, total: TensorVariable, place: Place) -> bool:
    """Whether a term has a dtype that a sum is made of, and no size known to differ from the sum's.

    One that is 1 where the sum's is not known is taken to be equal: a rest is checked.
    """
    if not keeps_dtype(term, total):
        return False
    if not place.is_rearranged:
        return True
    axes = place.axes(term.type.ndim)
    return len(axes) == total.type.ndim and all(
        None in sizes or sizes[0] == sizes[1]
        for sizes in zip((term.type.shape[a] for a in axes), total.type.shape, strict=True)
    )


def step_key(step: Apply) -> tuple:
    """Equal for nodes that put terms of the same shape into the same place."""
    if isinstance(step.op, IncSubtensor):  # whether it adds or writes
        return Subtensor(step.op.idx_list), *step.inputs[2:]
    if isinstance(step.op, Reshape):
        [term, shape] = step.inputs
        # Of terms whose sizes are not known each is taken for one of a shape of its own.
        return step.op, shape, term if None in term.type.shape else term.type.shape
    return step.op, *step.inputs[1:]


def read_part(step: Apply, whole: TensorVariable) -> TensorVariable:
    return Subtensor(step.op.idx_list)(whole, *step.inputs[2:])


def read_step(fgraph: FunctionGraph, step: Apply, total: TensorVariable) -> TensorVariable:
    """The inverse of `write_step`."""
    if is_written(fgraph, step, total):
        return total.owner.inputs[1 if isinstance(step.op, IncSubtensor) else 0]
    if isinstance(step.op, IncSubtensor):
        return present(fgraph, read_part(step, total))
    [term, *_] = step.inputs
    if isinstance(step.op, Reshape):
        return total.reshape(sizes_of(fgraph, term), ndim=term.type.ndim)
    places = {axis: place for place, axis in enumerate(step.op.new_order)}
    return total.dimshuffle([places.get(axis, "x") for axis in range(term.type.ndim)])


def is_written(fgraph: FunctionGraph, step: Apply, total: TensorVariable) -> bool:
    """Whether a sum is what `write_step` made for a node of the same place.

    What writes a part of the graph's own may as well add to it, or repeat a smaller one.
    """
    node = total.owner
    if node is None or type(node.op) is not type(step.op) or step_key(node) != step_key(step):
        return False
    return not isinstance(step.op, IncSubtensor) or node not in fgraph.apply_nodes


def write_step(
    fgraph: FunctionGraph, step: Apply, total: TensorVariable | None, term: TensorVariable
) -> TensorVariable:
    """What a node makes of a term, in place of what the sum holds there."""
    if total is not None and isinstance(step.op, IncSubtensor):
        if is_written(fgraph, step, total):
            total = total.owner.inputs[0]
        op = IncSubtensor(step.op.idx_list, set_instead_of_inc=True)
        return op(total, term, *step.inputs[2:])
    return step.op(term, *step.inputs[1:])


def present(fgraph: FunctionGraph, variable: TensorVariable) -> TensorVariable:
    """The same variable of the graph, of which more may be known, if there is one."""
    node = variable.owner
    for client, _ in fgraph.clients.get(node.inputs[0], ()):
        if client.op == node.op and client.inputs == node.inputs:
            return client.outputs[0]
    return variable


def sizes_of(fgraph: FunctionGraph, x: TensorVariable) -> list[TensorVariable]:
    """The sizes of a variable, computed without it as far as is known."""
    feature = getattr(fgraph, "shape_feature", None)
    axes = range(x.type.ndim)
    if feature is not None and x in fgraph.variables:
        return [as_tensor_variable(feature.get_shape(x, axis)) for axis in axes]
    return [Shape_i(axis)(x) for axis in axes]
