"""An elementwise rule over the blocks in use of some arrays: the step of an optimizer, in place."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from pytensor.graph.basic import Apply, Variable
from pytensor.link.c.op import COp
from pytensor.scalar.basic import ScalarOp, get_scalar_type
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.type import tensor

from blocksparse_ops.kernels.c import update_blocks
from blocksparse_ops.reference import destination
from blocksparse_ops.signature import WRONG_PLACE, WRONG_SIZE


class UpdateBlocks(COp):
    """``array[inputBlock, outputBlock] := rule(...)`` for some arrays, element by element

    It is what reading blocks of arrays, an elementwise op and writing its results into blocks
    become, as the steps of `blocksparse_ops.updates` do: so that each block is read and written
    once, and nothing is allocated.

    Parameters
    ----------
    rule : ScalarOp
        What computes new elements from old ones and from others.
    reads, writes : tuple of int
        Which array, by its position after the blocks, each argument of the rule is read from, and
        each result is written to.
    arrays : int
        How many are of blocks; those after them are of elements of the blocks in use.
    inplace : bool, optional
        Write into the arrays themselves.
    """

    __props__ = ("rule", "reads", "writes", "arrays", "inplace")

    def __init__(
        self,
        rule: ScalarOp,
        reads: Sequence[int],
        writes: Sequence[int],
        arrays: int,
        inplace: bool = False,
    ):
        self.rule, self.reads, self.writes = rule, tuple(reads), tuple(writes)
        self.arrays, self.inplace = arrays, inplace
        if inplace:
            self.destroy_map = {k: [2 + position] for k, position in enumerate(self.writes)}

    def in_place(self) -> "UpdateBlocks":
        return UpdateBlocks(self.rule, self.reads, self.writes, self.arrays, inplace=True)

    def make_node(self, *inputs: Variable) -> Apply:
        """Of the blocks in use, by two numbers, the arrays, and what has their elements."""
        return Apply(self, list(inputs), [inputs[2 + position].type() for position in self.writes])

    def infer_shape(self, *args: Any) -> list[tuple]:
        return [args[-1][2 + position] for position in self.writes]

    def scalars(self, node: Apply) -> Apply:
        """The rule as it stands in a scalar graph."""
        inputs = (node.inputs[2 + position].type.dtype for position in self.reads)
        return self.rule.make_node(*(get_scalar_type(dtype)() for dtype in inputs))

    def __str__(self) -> str:
        return f"UpdateBlocks{{{self.rule}, inplace={self.inplace}}}"

    def perform(
        self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list]
    ) -> None:
        inputBlock, outputBlock, *operands = inputs
        place = inputBlock, outputBlock
        for whole in operands[: self.arrays]:
            if any((block >= n).any() for block, n in zip(place, whole.shape, strict=False)):
                raise IndexError(WRONG_PLACE)
        parts = [operands[k][place] if k < self.arrays else operands[k] for k in self.reads]
        results, wholes = self.results(parts), [operands[k] for k in self.writes]
        for result, whole in zip(results, wholes, strict=True):
            if result.shape != (len(inputBlock), *whole.shape[2:]):
                raise ValueError(WRONG_SIZE)
        for storage, result, whole in zip(output_storage, results, wholes, strict=True):
            storage[0] = destination(whole, self.inplace)
            storage[0][place] = result

    def results(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What PyTensor's elementwise op makes of the elements."""
        elementwise = Elemwise(self.rule)
        types = [
            tensor(dtype=part.dtype, shape=tuple(1 if n == 1 else None for n in part.shape))
            for part in parts
        ]
        core = elementwise.make_node(*types)
        elementwise.prepare_node(core, None, None, "py")
        storage: list[list] = [[None] for _ in core.outputs]
        elementwise.perform(core, list(parts), storage)
        return [result for [result] in storage]

    def c_compile_args(self, **kwargs: Any) -> list[str]:
        # Debugging information takes long to compile, and errno keeps roots out of vectors.
        return ["-g0", "-fno-math-errno"]

    def c_header_dirs(self, **kwargs: Any) -> list[str]:
        return self.rule.c_header_dirs(**kwargs)

    def c_support_code(self, **kwargs: Any) -> str:
        return self.rule.c_support_code(**kwargs)

    def c_code_cache_version_apply(self, node: Apply) -> tuple[Hashable, ...]:
        version = self.rule.c_code_cache_version_apply(self.scalars(node))
        return (2, version) if version else ()

    def operands(self, node: Apply) -> list[update_blocks.Operand]:
        """C code for the elements of the arrays."""
        return [
            update_blocks.Operand(k, k < self.arrays, repeats(x, k < self.arrays), c_type(x.type))
            for k, x in enumerate(node.inputs[2:])
        ]

    def c_support_code_apply(self, node: Apply, name: str) -> str:
        scalars, of_rule = self.scalars(node), f"{name}_rule"
        arguments = [f"in{k}" for k in range(len(self.reads))]
        results = [f"out{k}" for k in range(len(self.writes))]
        rule = self.rule.c_code(scalars, of_rule, arguments, results, {"fail": ""})
        types = [c_type(x.type) for x in scalars.outputs]
        function = update_blocks.define(
            name, rule, types, self.operands(node), self.reads, self.writes
        )
        return self.rule.c_support_code_apply(scalars, of_rule) + function

    def c_code(
        self, node: Apply, name: str, inputs: list[str], outputs: list[str], sub: dict[str, str]
    ) -> str:
        blocks, arrays = inputs[:2], inputs[2:]
        results = dict(zip(self.writes, outputs, strict=True))
        return update_blocks.call(
            name, blocks, arrays, results, self.operands(node), self.inplace, sub["fail"]
        )


def repeats(x: Variable, of_blocks: bool) -> tuple[bool, ...]:
    """Of each axis, whether its one element stands for those of all blocks in use."""
    return (False,) * 4 if of_blocks else x.type.broadcastable


def c_type(type_: Any) -> str:
    return type_.dtype_specs()[1]
