"""What SparseBlockGemv and SparseBlockOuter share: checks, shapes and C code."""

from typing import ClassVar

import pytensor.scalar as ps
from pytensor import config
from pytensor.gradient import DisconnectedType, disconnected_type
from pytensor.graph.basic import Apply
from pytensor.link.c.op import OpenMPOp
from pytensor.tensor.basic import cast, tensor_copy
from pytensor.tensor.type import complex_dtypes, discrete_dtypes, tensor

from blocksparse_ops import reference
from blocksparse_ops.arguments import as_argument, foldable
from blocksparse_ops.kernels.c import source
from blocksparse_ops.signature import Signature
from blocksparse_ops.zeros import zeros_like


class SparseBlockOp(OpenMPOp):
    """An op whose first argument is what is added to.

    A subclass gives its `signature`, the C++ class that computes it, and its mathematics.
    """

    __props__ = ("inplace",)
    # Of the dtypes that have no C code, float16 would warn before it falls to `perform`.
    _f16_ok = True

    signature: ClassVar[Signature]
    kernel: ClassVar[str]

    def __init__(self, inplace: bool = False):
        super().__init__(openmp=False)
        self.inplace = inplace
        if inplace:
            self.destroy_map = {0: [0]}

    @property
    def gufunc_signature(self):
        return self.signature.gufunc()

    def make_node(self, *inputs):
        variables = [
            as_argument(self.signature, name, value)
            for name, value in zip(self.signature.names, inputs, strict=True)
        ]
        sizes = self.signature.static_sizes([variable.type.shape for variable in variables])
        variables = self._upcast(variables)
        shape = tuple(sizes[letter] for letter in self.signature.axes[self.signature.names[0]])
        return Apply(self, variables, [tensor(dtype=variables[0].dtype, shape=shape)])

    def _upcast(self, variables):
        """Cast what is multiplied and added to one dtype, and a scale to that dtype."""
        computed = [
            position
            for position, (name, letters) in enumerate(self.signature.axes.items())
            if letters and name not in self.signature.counts
        ]
        dtype = ps.upcast(*(variables[position].dtype for position in computed))
        if self.inplace and variables[0].dtype != dtype:
            o_dtype = variables[0].dtype
            raise TypeError(
                f"{self.signature.op}: o has dtype {o_dtype} but the result has {dtype}: "
                "it cannot be written in place. Cast the other arguments to o's dtype, "
                "or use the op that is not in place"
            )
        return [
            variable
            if name in self.signature.counts or variable.dtype == dtype
            else self._cast(name, variable, dtype)
            for name, variable in zip(self.signature.names, variables, strict=True)
        ]

    def _cast(self, name, variable, dtype):
        if dtype in discrete_dtypes and variable.dtype not in discrete_dtypes:
            raise TypeError(
                f"{self.signature.op}: {name} has dtype {variable.dtype} but the blocks have "
                f"{dtype}, which would lose its fraction. Cast the blocks to a float dtype"
            )
        return cast(variable, dtype)

    def do_constant_folding(self, fgraph, node):
        return foldable(node, lambda *values: reference.check(self.signature, values))

    def infer_shape(self, *args):
        # PyTensor 3.0 calls this with (fgraph, node, shapes), later versions with (node, shapes).
        return [args[-1][0]]

    def connection_pattern(self, node):
        return [[name not in self.signature.counts] for name in self.signature.names]

    def grad(self, inputs, output_grads):
        """The name under which Theano knew `pullback`."""
        return self.pullback(inputs, None, output_grads)

    @staticmethod
    def _passed_on(cotangent):
        """The gradient in what is added to: the cotangent, but as a variable of its own.

        PyTensor's default pushforward, a pullback of a pullback, gives the gradients of the first
        values; a gradient that is the cotangent itself would cut off its other uses there.
        """
        return tensor_copy(cotangent)

    def _pushed_forward(self, o, to, terms):
        """The tangent of the result: that of `o`, with each term that has a tangent added to it.

        A term is a tangent, and the arguments after `o` with which the op adds it.
        """
        terms = [x for tangent, x in terms if not isinstance(tangent.type, DisconnectedType)]
        if isinstance(to.type, DisconnectedType):
            if not terms:
                return [disconnected_type()]
            to = zeros_like(o)
        for arguments in terms:
            to = type(self)()(to, *arguments)
        return [to]

    def _require_differentiable(self, o):
        if o.dtype in complex_dtypes:
            raise TypeError(
                f"{self.signature.op}: gradients are defined for real dtypes, not for {o.dtype}. "
                "Write the real and the imaginary part as two real arrays"
            )
        return o.dtype not in discrete_dtypes

    def c_support_code(self, **kwargs):
        return source.support_code()

    def c_compile_args(self, **kwargs):
        # Whether there are threads is settled when a graph is compiled, not when an op is made.
        self.openmp = config.openmp
        return [*source.COMPILE_ARGS, *super().c_compile_args(**kwargs)]

    def c_headers(self, **kwargs):
        # The C++ files include what they need.
        return []

    def c_code_cache_version(self):
        return source.version()

    def c_code(self, node, name, inputs, outputs, sub):
        dtype = node.outputs[0].type.dtype
        (output,) = outputs
        return source.call(
            self.kernel, self.signature, dtype, inputs, output, self.inplace, sub["fail"]
        )
