"""A gradient step that touches only the blocks in use.

``W - lr * outer(zeros, x, y, ...)`` takes dense zeros, a dense product and a dense difference;
``outer(W, x, y, ..., -lr)`` adds to the blocks that the indices name, in place where it may.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytensor import scalar as ps
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.tensor.basic import cast, constant
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.math import add, mul, true_div
from pytensor.tensor.shape import SpecifyShape
from pytensor.tensor.type import continuous_dtypes
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.ops import SparseBlockOuter
from blocksparse_ops.rewrites.match import (
    is_elementwise,
    like,
    register,
    same_shape,
    sole_client,
    specified_like,
)
from blocksparse_ops.zeros import is_zeros


@node_rewriter([SparseBlockOuter])
def local_sparse_block_outer_update(
    fgraph: FunctionGraph, node: Apply
) -> dict[Variable, Variable] | None:
    """scale * outer(zeros, ..., alpha) + rest -> outer(rest, ..., scale * alpha)

    The whole linear form in which the outer stands is collected, from its topmost node, however
    its sums, differences, negations, scalar factors and divisors are nested: with k outers it
    becomes a chain of k. No node is merged that has another user.

    Each time fewer outers start from zeros: none of the form does, or, if it has no rest, one. If
    one did before, too, at least the topmost elementwise node is gone.
    """
    o = node.inputs[0]
    if node.op.inplace or o.dtype not in continuous_dtypes or not is_zeros(o):
        return None
    top = topmost_sum(fgraph, node.outputs[0])
    if top is None:
        return None
    form = LinearForm(fgraph, top)
    if not form.has_outer(node):
        return None
    result = form.rebuilt()
    if result is None:
        return None
    return {top: top.type.filter_variable(result, allow_convert=True)}


def topmost_sum(fgraph: FunctionGraph, variable: TensorVariable) -> TensorVariable | None:
    """Climb from a term through the linear nodes that alone use it to the last elementwise one."""
    start, top = variable, None
    while (client := sole_client(fgraph, variable)) is not None:
        is_term = any(term is variable for _, term in linear_terms(client))
        if is_term and isinstance(client.op, DimShuffle):
            start = client.outputs[0]
        if not is_term or not fits(start, client.outputs[0]):
            break
        variable = client.outputs[0]
        if not isinstance(client.op, SparseBlockOuter | DimShuffle):
            top = variable
    return top


@dataclass(frozen=True)
class Layout:
    """How a term's axes stand in a sum: `axes` are the term's that are the sum's, in their order.

    The others of its `ndim` axes are of length 1.
    """

    ndim: int
    axes: tuple[int, ...]

    @property
    def is_sums(self) -> bool:
        """Whether the term's axes are those of the sum."""
        return self.axes == tuple(range(self.ndim))

    def below(self, op: DimShuffle) -> "Layout":
        """That of what an op of this layout rearranges."""
        return Layout(op.input_ndim, tuple(op.new_order[axis] for axis in self.axes))

    def shape(self, term: TensorVariable) -> tuple[int | None, ...]:
        return tuple(term.type.shape[axis] for axis in self.axes)

    def to_sum(self, term: TensorVariable) -> TensorVariable:
        return term if self.is_sums else term.dimshuffle(self.axes)

    def from_sum(self, total: TensorVariable) -> TensorVariable:
        """The inverse of `to_sum`."""
        if self.is_sums:
            return total
        if is_dropping(total.owner) and total.owner.op.new_order == self.axes:
            return total.owner.inputs[0]
        places = {axis: place for place, axis in enumerate(self.axes)}
        return total.dimshuffle([places.get(axis, "x") for axis in range(self.ndim)])


def is_dropping(node: Apply | None) -> bool:
    """Whether a node changes the order of axes, and drops some of length 1, and that is all."""
    return node is not None and isinstance(node.op, DimShuffle) and "x" not in node.op.new_order


def fits(term: TensorVariable, total: TensorVariable, layout: Layout | None = None) -> bool:
    """Whether a term has the dtype of a sum, and no size that is known to differ from the sum's.

    One that is 1 where the sum's is not known is taken to be equal: a rest is checked.
    """
    shape = layout.shape(term) if layout else term.type.shape
    return term.type.dtype == total.type.dtype and all(
        None in sizes or sizes[0] == sizes[1] for sizes in zip(shape, total.type.shape, strict=True)
    )


@dataclass(frozen=True)
class Scale:
    """A product of 0-d factors over one of divisors.

    Not one of factors and reciprocals: PyTensor's Python code for a fused reciprocal has the
    precision of float32.
    """

    factors: tuple[TensorVariable, ...] = ()
    divisors: tuple[TensorVariable, ...] = ()

    def __mul__(self, other: "Scale") -> "Scale":
        return Scale(self.factors + other.factors, self.divisors + other.divisors)

    def variable(self, dtype: str) -> TensorVariable:
        scale = product(self.factors) if self.factors else constant(1, dtype=dtype)
        return true_div(scale, product(self.divisors)) if self.divisors else scale


def minus_one(node: Apply) -> Scale:
    return Scale((constant(-1, dtype=node.outputs[0].dtype),))


def product(factors: Sequence[TensorVariable]) -> TensorVariable:
    return mul(*factors) if len(factors) > 1 else factors[0]


def linear_terms(node: Apply) -> list[tuple[Scale, TensorVariable]]:
    """(scale, term) for each term of a node that is linear in them, else nothing.

    The term of an outer is what it adds to.
    """
    if isinstance(node.op, SparseBlockOuter):
        return [] if node.op.inplace else [(Scale(), node.inputs[0])]
    if is_dropping(node):
        return [(Scale(), node.inputs[0])]
    if is_elementwise(node, ps.Add):
        return [(Scale(), x) for x in node.inputs]
    if is_elementwise(node, ps.Sub):
        return [(Scale(), node.inputs[0]), (minus_one(node), node.inputs[1])]
    if is_elementwise(node, ps.Neg):
        return [(minus_one(node), node.inputs[0])]
    if is_elementwise(node, ps.Mul):
        return scaled_term(node, node.inputs, [])
    if is_elementwise(node, ps.TrueDiv):
        return scaled_term(node, node.inputs[:1], node.inputs[1:])
    return []


def scaled_term(
    node: Apply, factors: Sequence[TensorVariable], divisors: Sequence[TensorVariable]
) -> list[tuple[Scale, TensorVariable]]:
    """The one factor that is an array of the result's dtype, if all others are scalars."""
    [out] = node.outputs
    terms = [x for x in factors if like(x, out) or not is_scalar(x)]
    scalars = [x for x in factors if x not in terms]
    if [x.dtype for x in terms] != [out.dtype] or not all(map(is_scalar, divisors)):
        return []
    as_scalars = (tuple(as_scalar(x, out.dtype) for x in xs) for xs in (scalars, divisors))
    return [(Scale(*as_scalars), terms[0])]


def is_scalar(x: TensorVariable) -> bool:
    """Whether a variable has one element, of whatever number of dimensions."""
    return all(x.type.broadcastable)


def as_scalar(x: TensorVariable, dtype: str) -> TensorVariable:
    """A variable of one element, of whatever number of dimensions, as one of none."""
    if x.owner is not None and isinstance(x.owner.op, DimShuffle) and x.owner.inputs[0].ndim == 0:
        x = x.owner.inputs[0]
    return cast(x.dimshuffle(), dtype)


class LinearForm:
    """A linear form as scaled outers and a scaled rest.

    Parameters
    ----------
    fgraph : FunctionGraph
    top : Variable
        The form's topmost node.

    Attributes
    ----------
    total : Variable
        The same, or what the graph specifies its shape to be: all that is collected fits it.
    """

    def __init__(self, fgraph: FunctionGraph, top: TensorVariable):
        self.fgraph = fgraph
        self.top = top
        client = sole_client(fgraph, top)
        is_specified = client is not None and isinstance(client.op, SpecifyShape)
        self.total = client.outputs[0] if is_specified else top
        self.outers: list[tuple[Scale, Apply, Layout]] = []
        # What outers were added to, and addends like the top, without repeats.
        self.zeros: dict[tuple[TensorVariable, Layout], None] = {}
        self.rest: dict[TensorVariable, list[Scale]] = {}
        self.open(top, Scale(), Layout(top.type.ndim, tuple(range(top.type.ndim))))

    def open(self, variable: TensorVariable, scale: Scale, layout: Layout) -> None:
        """Split a linear node into its terms."""
        node = variable.owner
        is_outer = isinstance(node.op, SparseBlockOuter)
        below = layout_of_terms(node, layout)
        for factors, term in linear_terms(node):
            if is_zeros(term) and (is_outer or like(term, self.top)):
                self.zeros[term, below] = None
            elif self.is_worth_opening(term, below):
                self.open(term, scale * factors, below)
            else:
                self.rest.setdefault(below.to_sum(term), []).append(scale * factors)
        if is_outer:
            self.outers.append((scale, node, layout))

    def can_open(self, variable: TensorVariable, layout: Layout) -> bool:
        return (
            variable.owner is not None
            and fits(variable, self.total, layout)
            and sole_client(self.fgraph, variable) is not None
            and bool(linear_terms(variable.owner))
        )

    def is_worth_opening(self, variable: TensorVariable, layout: Layout) -> bool:
        """Whether there is an outer to be had, or a scale.

        So that the scales of one term add up: W - lr * (g + decay * W) scales W once.
        """
        return self.can_open(variable, layout) and (
            is_elementwise(variable.owner, ps.Mul, ps.TrueDiv, ps.Neg)
            or self.holds_outer(variable, layout)
        )

    def holds_outer(self, variable: TensorVariable, layout: Layout) -> bool:
        """Whether there is an outer to be had from opening a sum."""
        if not self.can_open(variable, layout):
            return False
        terms = [term for _, term in linear_terms(variable.owner)]
        if isinstance(variable.owner.op, SparseBlockOuter) and is_zeros(terms[0]):
            return True
        below = layout_of_terms(variable.owner, layout)
        return any(self.holds_outer(term, below) for term in terms)

    def has_outer(self, node: Apply) -> bool:
        return any(node is outer for _, outer, _ in self.outers)

    def rebuilt(self) -> TensorVariable | None:
        """The form as a chain of outers on its rest, or None if they cannot be added to that.

        What the dense sum would have checked is checked: that all zeros have one shape.
        """
        if not self.rest:
            (zeros, layout), *others = self.zeros
            start = layout.to_sum(zeros)
            # After the first outer: PyTensor takes zeros of a specified shape for zeros of that.
            first = self.added(start, self.outers[:1])
            return self.added(self.of_shape(first, [start], others), self.outers[1:])
        rest = self.sum_of_rest()
        if rest.dtype != self.top.dtype or self.is_broadcast(rest):
            return None
        return self.added(self.of_shape(rest, self.rest, self.zeros), self.outers)

    def added(
        self, start: TensorVariable, outers: Iterable[tuple[Scale, Apply, Layout]]
    ) -> TensorVariable:
        """What some of the form's outers make of what they start from."""
        for scale, node, layout in outers:
            _, *factors, alpha = node.inputs
            scaled_alpha = (scale * Scale((alpha,))).variable(alpha.dtype)
            result = node.op(layout.from_sum(start), *factors, scaled_alpha)
            copy_stack_trace([self.top, node.outputs[0]], result)
            start = layout.to_sum(result)
        return start

    def sum_of_rest(self) -> TensorVariable:
        terms = [x for term, scales in self.rest.items() for x in scaled(term, scales)]
        if len(terms) == 1:
            return terms[0]
        rest = add(*terms)
        copy_stack_trace(self.top, rest)
        return rest

    def is_broadcast(self, rest: TensorVariable) -> bool:
        """Whether the outers may be larger than the rest."""
        wholes = [self.total.type.shape]
        wholes += [layout.shape(node.outputs[0]) for _, node, layout in self.outers]
        return not all(
            any(shape[axis] == 1 for shape in wholes)
            for axis, size in enumerate(rest.type.shape)
            if size == 1
        )

    def same_shape(self, x: TensorVariable, zeros: TensorVariable, layout: Layout) -> bool:
        """Whether a term in the sum's layout is known to have the shape of zeros in theirs."""
        if layout.is_sums:
            return same_shape(self.fgraph, x, zeros)
        pairs = enumerate(layout.axes)
        return all(same_shape(self.fgraph, x, zeros, place, axis) for place, axis in pairs)

    def of_shape(
        self,
        start: TensorVariable,
        terms: Iterable[TensorVariable],
        others: Iterable[tuple[TensorVariable, Layout]],
    ) -> TensorVariable:
        """`start`, the sum of these terms, checked to have the shape of each of the others."""
        for zeros, layout in others:
            seen = layout.to_sum(zeros)
            is_known = any(like(x, seen) and self.same_shape(x, zeros, layout) for x in terms)
            if not (is_known and like(start, seen)):
                start = specified_like(start, zeros, layout.axes)
                copy_stack_trace(self.top, start)
        return start


def layout_of_terms(node: Apply, layout: Layout) -> Layout:
    """That of a linear node's terms, from its own."""
    return layout.below(node.op) if isinstance(node.op, DimShuffle) else layout


def scaled(term: TensorVariable, scales: list[Scale]) -> list[TensorVariable]:
    """The terms that are together (the sum of the scales) * term."""
    quotients = [
        true_div(product((*scale.factors, term)), product(scale.divisors))
        for scale in scales
        if scale.divisors
    ]
    scales = [scale for scale in scales if not scale.divisors]
    if scales in ([], [Scale()]):
        return [term] * len(scales) + quotients
    variables = [scale.variable(term.dtype) for scale in scales]
    return [mul(add(*variables) if len(variables) > 1 else variables[0], term), *quotients]


register(local_sparse_block_outer_update)
