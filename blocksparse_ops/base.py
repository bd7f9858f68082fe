"""What SparseBlockGemv and SparseBlockOuter share: checks, shapes and C code."""

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import pytensor.scalar as ps
from pytensor import config
from pytensor.gradient import DisconnectedType, disconnected_type
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.link.c.op import OpenMPOp
from pytensor.tensor.basic import cast, tensor_copy
from pytensor.tensor.type import complex_dtypes, discrete_dtypes, tensor
from pytensor.tensor.variable import TensorVariable

from blocksparse_ops import reference
from blocksparse_ops.arguments import TensorLike, TensorOp, as_argument, as_padding, foldable
from blocksparse_ops.kernels.c import source
from blocksparse_ops.signature import Signature
from blocksparse_ops.zeros import zeros_like


class SparseBlockOp(TensorOp, OpenMPOp):
    """An op whose first argument is what is added to.

    A subclass gives its `signature` and its mathematics.
    """

    __props__: ClassVar[tuple[str, ...]] = ("inplace", "padding_idx")
    # Of the dtypes that have no C code, float16 would warn before it falls to `perform`.
    _f16_ok = True

    signature: ClassVar[Signature]

    def __init__(self, inplace: bool = False, padding_idx: int | None = None):
        super().__init__(openmp=False)
        self.inplace = inplace
        self.padding_idx = as_padding(self.signature.op, padding_idx)
        if inplace:
            self.destroy_map = {0: [0]}

    @property
    def gufunc_signature(self) -> str:
        return self.signature.gufunc()

    def make_node(self, *inputs: TensorLike) -> Apply:
        variables = [
            as_argument(self.signature, name, value, self.padding_idx)
            for name, value in zip(self.signature.names, inputs, strict=True)
        ]
        sizes = self.signature.static_sizes([variable.type.shape for variable in variables])
        variables = self._upcast(variables)
        shape = tuple(sizes[letter] for letter in self.signature.axes[self.signature.names[0]])
        return Apply(self, variables, [tensor(dtype=variables[0].dtype, shape=shape)])

    def _upcast(self, variables: Sequence[TensorVariable]) -> list[TensorVariable]:
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

    def _cast(self, name: str, variable: TensorVariable, dtype: str) -> TensorVariable:
        if dtype in discrete_dtypes and variable.dtype not in discrete_dtypes:
            raise TypeError(
                f"{self.signature.op}: {name} has dtype {variable.dtype} but the blocks have "
                f"{dtype}, which would lose its fraction. Cast the blocks to a float dtype"
            )
        return cast(variable, dtype)

    def do_constant_folding(self, fgraph: FunctionGraph, node: Apply) -> bool:
        return foldable(
            node, lambda *values: reference.check(self.signature, values, self.padding_idx)
        )

    def infer_shape(self, *args: Any) -> list[tuple]:
        # PyTensor 3.0 calls this with (fgraph, node, shapes), later versions with (node, shapes).
        return [args[-1][0]]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[name not in self.signature.indexed] for name in self.signature.names]

    def grad(
        self, inputs: Sequence[TensorVariable], output_grads: Sequence[TensorVariable]
    ) -> list[Variable]:
        """The name under which Theano knew `pullback`."""
        return self.pullback(inputs, (), output_grads)

    def pullback(
        self,
        inputs: Sequence[TensorVariable],
        outputs: Sequence[TensorVariable],
        cotangents: Sequence[TensorVariable],
    ) -> list[Variable]:
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

    def gradients(self, g: TensorVariable, *inputs: TensorVariable) -> dict[str, TensorVariable]:
        """The gradient in each factor, by its name, for the cotangent `g` of the result."""
        raise NotImplementedError

    def pushforward(
        self,
        inputs: Sequence[TensorVariable],
        outputs: Sequence[TensorVariable],
        tangents: Sequence[Variable],
    ) -> list[Variable]:
        """The tangent of what is added to, and the op on each factor's: it is linear in each."""
        o, *factors = inputs
        known = [
            None if name in self.signature.indexed or isinstance(x.type, DisconnectedType) else x
            for name, x in zip(self.signature.names, tangents, strict=True)
        ]
        if all(tangent is None for tangent in known):
            return [disconnected_type()]
        result, *others = known
        op = type(self)(padding_idx=self.padding_idx)
        if result is None:
            result = zeros_like(o)
        for k, tangent in enumerate(others):
            if tangent is not None:
                result = op(result, *factors[:k], tangent, *factors[k + 1 :])
        return [result]

    def c_compile_args(self, **kwargs: Any) -> list[str]:
        # Whether there are threads is settled when a graph is compiled, not when an op is made.
        self.openmp = config.openmp
        self.update_self_openmp()
        return list(source.COMPILE_ARGS)

    def c_headers(self, **kwargs: Any) -> list[str]:
        return []

    def c_support_code_struct(self, node: Apply, name: str) -> str:
        return source.declare_kernels(name)

    def c_cleanup_code_struct(self, node: Apply, name: str) -> str:
        return source.release_constants(name)

    def c_code_cache_version(self) -> tuple[Hashable, ...]:
        return (*source.version(), self.openmp)

    def c_code_cache_version_apply(self, node: Apply) -> tuple[Hashable, ...]:
        return (*self.c_code_cache_version(), self.constant_indices(node))

    def c_code(
        self, node: Apply, name: str, inputs: list[str], outputs: list[str], sub: dict[str, str]
    ) -> str:
        (output,) = outputs
        return source.call(node, name, inputs, output, sub["fail"])

    def indices(self, node: Apply) -> list[Variable]:
        """The arguments that are indices."""
        names = self.signature.names
        return [node.inputs[names.index(name)] for name in self.signature.indexed]

    def constant_indices(self, node: Apply) -> tuple[bool, ...]:
        """Whether each index is a constant."""
        return tuple(isinstance(index, Constant) for index in self.indices(node))
