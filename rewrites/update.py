"""A gradient step that touches only the blocks in use.

``W - lr * outer(zeros, x, y, ...)`` takes dense zeros, a dense product and a dense difference;
``outer(W, x, y, ..., -lr)`` adds to the blocks that the indices name, in place where it may.
"""

from dataclasses import dataclass

from pytensor import scalar as ps
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.tensor.basic import Alloc, cast, constant
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.math import add, mul, true_div
from pytensor.tensor.shape import specify_shape
from pytensor.tensor.type import continuous_dtypes

from blocksparse_ops.outer import SparseBlockOuter
from blocksparse_ops.rewrites.match import is_elementwise, like, register, sole_client
from blocksparse_ops.zeros import is_zeros


@node_rewriter([SparseBlockOuter])
def local_sparse_block_outer_update(fgraph, node):
    """scale * outer(zeros, ..., alpha) + rest -> outer(rest, ..., scale * alpha)

    The whole linear form in which the outer stands is collected, from its topmost node, however
    its sums, differences, negations, scalar factors and divisors are nested: with k outers it
    becomes a chain of k. No node is merged that has another user.
    """
    o = node.inputs[0]
    if node.op.inplace or o.dtype not in continuous_dtypes or not is_zeros(o):
        return None
    top = topmost_sum(fgraph, node.outputs[0])
    if top is None:
        return None
    result = LinearForm(fgraph, top).rebuilt()
    if result is None:
        return None
    copy_stack_trace(top, result)
    return {top: top.type.filter_variable(result, allow_convert=True)}


def topmost_sum(fgraph, variable):
    """Climb from a term through the linear nodes that alone use it to the last elementwise one."""
    top = None
    while (client := sole_client(fgraph, variable)) is not None:
        if not any(term is variable for _, term in linear_terms(client)):
            break
        variable = client.outputs[0]
        if not isinstance(client.op, SparseBlockOuter):
            top = variable
    return top


@dataclass(frozen=True)
class Scale:
    """A product of 0-d factors over one of divisors.

    Not one of factors and reciprocals: PyTensor's Python code for a fused reciprocal has the
    precision of float32.
    """

    factors: tuple = ()
    divisors: tuple = ()

    def __mul__(self, other):
        return Scale(self.factors + other.factors, self.divisors + other.divisors)

    def variable(self, dtype):
        scale = product(self.factors) if self.factors else constant(1, dtype=dtype)
        return true_div(scale, product(self.divisors)) if self.divisors else scale


def minus_one(node):
    return Scale((constant(-1, dtype=node.outputs[0].dtype),))


def product(factors):
    return mul(*factors) if len(factors) > 1 else factors[0]


def linear_terms(node):
    """(scale, term) for each term of a node that is linear in them, else nothing.

    The term of an outer is what it adds to.
    """
    if isinstance(node.op, SparseBlockOuter):
        return [] if node.op.inplace else [(Scale(), node.inputs[0])]
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


def scaled_term(node, factors, divisors):
    """The one factor that is like the result, if all others are scalars."""
    [out] = node.outputs
    terms = [x for x in factors if like(x, out)]
    scalars = [x for x in factors if not like(x, out)]
    if len(terms) != 1 or not all(all(x.type.broadcastable) for x in (*scalars, *divisors)):
        return []
    as_scalars = (tuple(as_scalar(x, out.dtype) for x in xs) for xs in (scalars, divisors))
    return [(Scale(*as_scalars), terms[0])]


def as_scalar(x, dtype):
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
        The form's topmost node; all that is collected has its type.
    """

    def __init__(self, fgraph, top):
        self.fgraph = fgraph
        self.top = top
        self.outers = []  # (scale, node)
        self.zeros = {}  # what outers were added to, without repeats
        self.rest = {}  # term to its scales
        self.open(top, Scale())

    def open(self, variable, scale):
        """Split a linear node into its terms."""
        node = variable.owner
        for factors, term in linear_terms(node):
            self.collect(term, scale * factors)
        if isinstance(node.op, SparseBlockOuter):
            self.outers.append((scale, node))

    def collect(self, variable, scale):
        """Sort a term into the outers or the rest."""
        if is_zeros(variable) and like(variable, self.top):
            self.zeros[variable] = None
        elif self.can_open(variable) and (self.is_scaling(variable) or self.holds_outer(variable)):
            self.open(variable, scale)
        else:
            self.rest.setdefault(variable, []).append(scale)

    def can_open(self, variable):
        return (
            variable.owner is not None
            and like(variable, self.top)
            and sole_client(self.fgraph, variable) is not None
            and bool(linear_terms(variable.owner))
        )

    def is_scaling(self, variable):
        """So that the scales of one term add up: W - lr * (g + decay * W) scales W once."""
        return is_elementwise(variable.owner, ps.Mul, ps.TrueDiv, ps.Neg)

    def holds_outer(self, variable):
        """Whether there is an outer to be had from opening a sum."""
        if not self.can_open(variable):
            return False
        terms = [term for _, term in linear_terms(variable.owner)]
        if isinstance(variable.owner.op, SparseBlockOuter) and is_zeros(terms[0]):
            return True
        return any(self.holds_outer(term) for term in terms)

    def rebuilt(self):
        """The form as a chain of outers on its rest, or None if that has another type."""
        result = self.rebuilt_rest()
        if result is None:
            return None
        for scale, node in self.outers:
            _, *factors, alpha = node.inputs
            scaled_alpha = (scale * Scale((alpha,))).variable(alpha.dtype)
            result = node.op(result, *factors, scaled_alpha)
            copy_stack_trace([self.top, node.outputs[0]], result)
        return result

    def rebuilt_rest(self):
        if not self.rest:
            return next(iter(self.zeros))
        terms = [x for term, scales in self.rest.items() for x in scaled(term, scales)]
        rest = add(*terms) if len(terms) > 1 else terms[0]
        if not like(rest, self.top):
            return None
        copy_stack_trace(self.top, rest)
        for zeros in self.zeros:
            rest = self.of_shape(rest, zeros)
        return rest

    def of_shape(self, rest, zeros):
        """The rest, checked to have the shape of the zeros: the dense sum would have checked it."""
        term = next(term for term in self.rest if like(term, self.top))
        shape_feature = getattr(self.fgraph, "shape_feature", None)
        if shape_feature is not None and shape_feature.same_shape(term, zeros):
            return rest
        is_alloc = zeros.owner is not None and isinstance(zeros.owner.op, Alloc)
        return specify_shape(rest, zeros.owner.inputs[1:] if is_alloc else zeros.shape)


def scaled(term, scales):
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
