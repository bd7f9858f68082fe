"""A gradient step that touches only the blocks in use.

``W - lr * outer(zeros, x, y, ...)`` takes dense zeros, a dense product and a dense difference;
``outer(W, x, y, ..., -lr)`` adds to the blocks that the indices name, in place where it may.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from pytensor import scalar as ps
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.tensor.basic import cast
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.math import add, mul, true_div
from pytensor.tensor.shape import Reshape, SpecifyShape
from pytensor.tensor.subtensor import IncSubtensor
from pytensor.tensor.type import continuous_dtypes
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops.ops import SparseBlockOuter
from blocksparse_ops.rewrites.linear import (
    Place,
    Scale,
    as_scalar,
    branches,
    fits,
    keeps_dtype,
    linear_terms,
    product,
)
from blocksparse_ops.rewrites.match import (
    is_elementwise,
    like,
    register,
    same_shape,
    sole_client,
    specified_like,
)
from blocksparse_ops.rewrites.sums import sums_of, terms_below, ways_down
from blocksparse_ops.zeros import is_zeros


@node_rewriter([SparseBlockOuter])
def local_sparse_block_outer_update(
    fgraph: FunctionGraph, node: Apply
) -> dict[Variable, Variable] | None:
    """scale * outer(zeros, ..., alpha) + rest -> outer(rest, ..., scale * alpha)

    The whole linear form in which the outer stands is collected, from its topmost node, however
    its sums, differences, negations, casts, choices by a scalar, scalar factors and divisors are
    nested, wherever in the rest the outer lies, and however often: with k outers it becomes a chain
    of k. No node is merged that has a user besides.

    Each time fewer outers start from zeros: none of the form does, or, if it has no rest, one. If
    one did before, too, at least the topmost elementwise node is gone.
    """
    o = node.inputs[0]
    if node.op.inplace or o.dtype not in continuous_dtypes or not is_zeros(o):
        return None
    for top in sums_of(fgraph, node.outputs[0]):
        form = LinearForm(fgraph, top)
        if form.has_outer(node) and (result := form.rebuilt()) is not None:
            return {top: top.type.filter_variable(result, allow_convert=True)}
    return None


@dataclass
class Terms:
    """What a linear form is made of.

    Attributes
    ----------
    outers : list of (Scale, Apply, Place)
    zeros : dict
        What outers were added to, and addends like the sum, by their places and these' keys.
    rest : dict
        The scales of all other terms, rearranged to the axes of the sum.
    """

    outers: list[tuple[Scale, Apply, Place]] = field(default_factory=list)
    zeros: dict[tuple, tuple[TensorVariable, Place]] = field(default_factory=dict)
    rest: dict[TensorVariable, list[Scale]] = field(default_factory=dict)

    def add_zeros(self, zeros: TensorVariable, place: Place) -> None:
        self.zeros[zeros, place.key] = zeros, place

    def update(self, other: "Terms") -> None:
        self.outers += other.outers
        self.zeros |= other.zeros
        for term, scales in other.rest.items():
            self.rest.setdefault(term, []).extend(scales)


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
    ways : dict
        Of what the form alone uses, how often it is a term.
    """

    def __init__(self, fgraph: FunctionGraph, top: TensorVariable):
        self.fgraph = fgraph
        self.top = top
        client = sole_client(fgraph, top)
        is_specified = client is not None and isinstance(client.op, SpecifyShape)
        self.total = client.outputs[0] if is_specified else top
        self.ways = ways_down(fgraph, top)
        # Each once: scales are compared, and what is made twice differs.
        self.linear_terms, self.as_scalar = cache(linear_terms), cache(as_scalar)
        terms = self.collected()
        self.outers, self.rest = added_up(terms.outers), terms.rest
        self.zeros = list(terms.zeros.values())
        self.checked_parts: set[tuple] = set()

    def collected(self) -> Terms:
        """All terms; an outer that is not opened wherever it stands is needed as a whole."""
        while (terms := self.opened(self.top, Scale(), Place())) is not None:
            found = Counter(node.outputs[0] for _, node, _ in terms.outers)
            whole = [outer for outer, times in found.items() if times < self.ways[outer]]
            if not whole:
                return terms
            for outer in whole:
                del self.ways[outer]
        return Terms()

    def opened(self, variable: TensorVariable, scale: Scale, place: Place) -> Terms | None:
        """Split a linear node into its terms; None if it is to be taken as a whole."""
        node = variable.owner
        if self.is_stretched(node, place):
            return None
        if (chosen := branches(node)) is not None:
            return self.opened_choice(node, chosen, scale, place)
        terms = Terms()
        is_outer = isinstance(node.op, SparseBlockOuter)
        for term in self.linear_terms(node):
            x, below, scaled_by = term.variable, place.below(term.step), scale * term.scale
            if is_zeros(x) and (is_outer or like(x, self.top)):
                terms.add_zeros(x, below)
            elif (others := self.split(x, scaled_by, below)) is not None:
                terms.update(others)
            else:
                return None
        if is_outer:
            terms.outers.append((scale, node, place))
        return terms

    def is_stretched(self, node: Apply, place: Place) -> bool:
        """Whether a term may have to be repeated, where no check of the whole sees that."""
        [out] = node.outputs
        if not place.is_rearranged:
            return isinstance(node.op, Elemwise) and any(
                term.variable.type.broadcastable != out.type.broadcastable
                for term in terms_below(node)
                if not (is_elementwise(node, ps.Switch) and is_zeros(term.variable))
            )
        if not isinstance(node.op, IncSubtensor | Reshape):
            return False
        axes = place.axes(out.type.ndim)
        pattern = tuple(out.type.broadcastable[axis] for axis in axes)
        return pattern != self.total.type.broadcastable

    def split(self, variable: TensorVariable, scale: Scale, place: Place) -> Terms | None:
        """The terms of a term, or itself; None if it lies where only outers may."""
        if self.is_worth_opening(variable, place):
            terms = self.opened(variable, scale, place)
            if terms is not None:
                return terms
        if place.is_part:
            return None
        return Terms(rest={place.write(self.fgraph, None, variable): [scale]})

    def opened_choice(
        self,
        node: Apply,
        chosen_by: tuple[TensorVariable, TensorVariable, TensorVariable],
        scale: Scale,
        place: Place,
    ) -> Terms | None:
        """A choice between two forms of the same rest: outers of either are added where chosen."""
        condition, one, other = chosen_by
        condition = self.as_scalar(condition, "bool")
        terms = Terms()
        rests: list[dict[TensorVariable, list[Scale]]] = []
        for chosen, wanted in ((one, True), (other, False)):
            if is_zeros(chosen):
                if like(chosen, node.outputs[0]):
                    terms.add_zeros(chosen, place)
                rests.append({})
                continue
            branch = self.split(chosen, scale, place)
            if branch is None:
                return None
            rests.append(branch.rest)
            terms.outers += [(s.guarded(condition, wanted), *o) for s, *o in branch.outers]
            terms.zeros |= branch.zeros
        terms.rest = rests[0]
        return terms if rests[0] == rests[1] else None

    def can_open(self, variable: TensorVariable, place: Place) -> bool:
        node = variable.owner
        return (
            node is not None
            and fits(variable, self.total, place)
            and variable in self.ways
            # An outer adds to what has its own dtype.
            and (variable.dtype == self.top.dtype or not isinstance(node.op, SparseBlockOuter))
            and bool(terms_below(node))
        )

    def is_worth_opening(self, variable: TensorVariable, place: Place) -> bool:
        """Whether there is an outer to be had, or a scale.

        So that the scales of one term add up: W - lr * (g + decay * W) scales W once.
        """
        return self.can_open(variable, place) and (
            is_elementwise(variable.owner, ps.Mul, ps.TrueDiv, ps.Neg)
            or self.holds_outer(variable, place)
        )

    def holds_outer(self, variable: TensorVariable, place: Place) -> bool:
        """Whether there is an outer to be had from opening a sum."""
        if not self.can_open(variable, place):
            return False
        node = variable.owner
        if isinstance(node.op, SparseBlockOuter) and is_zeros(node.inputs[0]):
            return True
        return any(self.holds_outer(t.variable, place.below(t.step)) for t in terms_below(node))

    def has_outer(self, node: Apply) -> bool:
        return any(node is outer for _, outer, _ in self.outers)

    def rebuilt(self) -> TensorVariable | None:
        """The form as a chain of outers on its rest, or None if they cannot be added to that.

        What the dense sum would have checked is checked: that all zeros have one shape.
        """
        if not self.rest:
            return self.rebuilt_on_zeros()
        rest = self.sum_of_rest()
        if rest.dtype != self.top.dtype or self.is_broadcast(rest):
            return None
        return self.added(self.of_shape(rest, self.rest, self.zeros), self.outers)

    def rebuilt_on_zeros(self) -> TensorVariable | None:
        places = [place for *_, place in self.outers] + [place for _, place in self.zeros]
        if not all(place.is_rearranged for place in places):
            return None
        (zeros, place), *others = self.zeros
        start = place.write(self.fgraph, None, zeros)
        # After the first outer: PyTensor takes zeros of a specified shape for zeros of that.
        first = self.added(start, self.outers[:1])
        return self.added(self.of_shape(first, [start], others), self.outers[1:])

    def added(
        self, start: TensorVariable, outers: Iterable[tuple[TensorVariable, Apply, Place]]
    ) -> TensorVariable:
        """What some of the form's outers make of what they start from."""
        for alpha, node, place in outers:
            _, *factors, _ = node.inputs
            part = self.checked(place.read(self.fgraph, start), place)
            result = node.op(part, *factors, alpha)
            copy_stack_trace([self.top, node.outputs[0]], result)
            start = place.write(self.fgraph, start, result)
        return start

    def checked(self, part: TensorVariable, place: Place) -> TensorVariable:
        """A part of a sum, checked to have the shape of zeros that lie there, once."""
        if place.is_part and place.key not in self.checked_parts:
            self.checked_parts.add(place.key)
            for zeros, other in self.zeros:
                if other.key == place.key and not same_shape(self.fgraph, part, zeros):
                    part = specified_like(part, zeros, range(part.type.ndim))
                    copy_stack_trace(self.top, part)
        return part

    def sum_of_rest(self) -> TensorVariable:
        terms = [x for term, scales in self.rest.items() for x in scaled(term, scales)]
        rest = sum_of(terms)
        if keeps_dtype(rest, self.top):
            rest = cast(rest, self.top.dtype)
        if rest is not terms[0]:
            copy_stack_trace(self.top, rest)
        return rest

    def is_broadcast(self, rest: TensorVariable) -> bool:
        """Whether the outers may be larger than the rest."""
        wholes = [self.total.type.shape]
        wholes += [place.whole(node.outputs[0]).type.shape for _, node, place in self.outers]
        return not all(
            any(shape[axis] == 1 for shape in wholes)
            for axis, size in enumerate(rest.type.shape)
            if size == 1
        )

    def of_shape(
        self,
        start: TensorVariable,
        terms: Iterable[TensorVariable],
        others: Iterable[tuple[TensorVariable, Place]],
    ) -> TensorVariable:
        """`start`, the sum of these terms, checked to have the shape of all zeros that fill it."""
        for zeros, place in others:
            if not place.is_rearranged:
                continue
            axes = place.axes(zeros.type.ndim)
            seen = place.write(self.fgraph, None, zeros)
            is_known = any(like(x, seen) and self.has_sizes(x, zeros, axes) for x in terms)
            if not (is_known and like(start, seen)):
                start = specified_like(start, zeros, axes)
                copy_stack_trace(self.top, start)
        return start

    def has_sizes(self, x: TensorVariable, zeros: TensorVariable, axes: tuple[int, ...]) -> bool:
        """Whether a term is known to have the sizes of zeros on these axes of theirs."""
        if axes == tuple(range(zeros.type.ndim)):
            return same_shape(self.fgraph, x, zeros)
        return all(same_shape(self.fgraph, x, zeros, k, axis) for k, axis in enumerate(axes))


def added_up(
    outers: Iterable[tuple[Scale, Apply, Place]],
) -> list[tuple[TensorVariable, Apply, Place]]:
    """One for each outer and place, with all that scales it."""
    together: dict[tuple, tuple[Apply, Place, list[Scale]]] = {}
    for scale, node, place in outers:
        *_, scales = together.setdefault((node, place.key), (node, place, []))
        scales.append(scale)
    scaled_by = cache(lambda alpha, *scales: sum_of([scale.times(alpha) for scale in scales]))
    return [
        (scaled_by(node.inputs[-1], *scales), node, place)
        for node, place, scales in together.values()
    ]


def sum_of(terms: list[TensorVariable]) -> TensorVariable:
    return add(*terms) if len(terms) > 1 else terms[0]


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
    return [mul(sum_of(variables), term), *quotients]


register(local_sparse_block_outer_update)
