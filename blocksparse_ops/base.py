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
            if letters and name not in self.signature.indexed
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
            if name in self.signature.indexed or variable.dtype == dtype
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
        return [[name not in self.signature.indexed] for name in self.signature.names]

    def grad(self, inputs, output_grads):
        """The name under which Theano knew `pullback`."""
        return self.pullback(inputs, None, output_grads)

    def pullback(self, inputs, outputs, cotangents):
        o, (g,) = inputs[0], cotangents
        if o.dtype in complex_dtypes:
            raise TypeError(
                f"{self.signature.op}: gradients are defined for real dtypes, not for {o.dtype}. "
                "Write the real and the imaginary part as two real arrays"
            )
        named = dict(zip(self.signature.names, inputs, strict=True))
        if o.dtype in discrete_dtypes:
            gradients = {name: x.zeros_like(dtype=config.floatX) for name, x in named.items()}
        else:
            # A variable of its own: PyTensor's default pushforward, a pullback of a pullback, gives
            # the gradients of the first values, which would cut off other uses of the cotangent.
            gradients = {"o": tensor_copy(g), **self.gradients(g, *inputs)}
        return [
            disconnected_type() if name in self.signature.indexed else gradients[name]
            for name in named
        ]

    def gradients(self, g, *inputs):
        """The gradient in each factor, by its name, for the cotangent `g` of the result."""
        raise NotImplementedError

    def pushforward(self, inputs, outputs, tangents):
        """The tangent of what is added to, and the op on each factor's: it is linear in each."""
        o, *factors = inputs
        tangents = [
            None if name in self.signature.indexed or isinstance(x.type, DisconnectedType) else x
            for name, x in zip(self.signature.names, tangents, strict=True)
        ]
        if all(tangent is None for tangent in tangents):
            return [disconnected_type()]
        result, *others = tangents
        if result is None:
            result = zeros_like(o)
        for k, tangent in enumerate(others):
            if tangent is not None:
                result = type(self)()(result, *factors[:k], tangent, *factors[k + 1 :])
        return [result]

    def c_compile_args(self, **kwargs):
        # Whether there are threads is settled when a graph is compiled, not when an op is made.
        self.openmp = config.openmp
        self.update_self_openmp()
        return []

    def c_headers(self, **kwargs):
        return []

    def c_support_code_struct(self, node, name):
        return source.declare(f"kernel_{name}")

    def c_init_code_struct(self, node, name, sub):
        dtype = node.outputs[0].type.dtype
        source.require_kernel(self.kernel, dtype)
        return source.load(f"kernel_{name}", dtype, self.kernel, self.openmp, sub["fail"])

    def c_code_cache_version(self):
        return (*source.version(), self.openmp)

    def c_code(self, node, name, inputs, outputs, sub):
        source.require_kernel(self.kernel, node.outputs[0].type.dtype)
        (output,) = outputs
        return source.call(f"kernel_{name}", inputs, output, self.inplace, sub["fail"])
