"""The package's ops, compiled by PyTensor for one of its modes."""

from functools import partial

import numpy as np
import pytensor
import pytensor.tensor as pt
from memory import settled
from problems import ALPHA, LEARNING_RATE
from pytensor import In, Out, config
from pytensor.compile.ops import DeepCopyOp
from timing import Call

from blocksparse_ops import (
    SparseBlockGemv,
    SparseBlockOuter,
    sparse_block_dot,
    sparse_block_gemv,
    sparse_block_outer,
)
from blocksparse_ops.zeros import zeros_like


def symbol(name, array):
    return pt.tensor(name, dtype=array.dtype, shape=(None,) * array.ndim)


def shared(array, name):
    """A shared variable of its own memory, which updates may then change in place."""
    return pytensor.shared(settled(array), name, borrow=True)


class Ours:
    """The ops in one mode; with `openmp`, on as many threads as the process is given."""

    def __init__(self, mode, openmp=False):
        self.mode = mode
        self.openmp = openmp

    def compiled(self, in_place_op, inputs, *args, **kwargs):
        """A function that is known to work in place: a copy would be timed otherwise."""
        with config.change_flags(openmp=self.openmp, on_opt_error="raise"):
            f = pytensor.function(inputs, *args, **kwargs, mode=self.mode)
        ops = [node.op for node in f.maker.fgraph.apply_nodes]
        assert in_place_op(inplace=True) in ops
        assert not any(isinstance(op, DeepCopyOp) for op in ops)
        return f

    def gemv(self, o, W, h, inputIdx, outputIdx, transpose=lambda W: W):
        arrays = {"o": o.copy(), "h": h, "inputIdx": inputIdx, "outputIdx": outputIdx}
        o, h, inputIdx, outputIdx = (symbol(*item) for item in arrays.items())
        result = sparse_block_gemv(o, transpose(shared(W, "W")), h, inputIdx, outputIdx)
        inputs = [In(o, mutable=True, borrow=True), h, inputIdx, outputIdx]
        f = self.compiled(SparseBlockGemv, inputs, Out(result, borrow=True))
        return Call(partial(f, *arrays.values()))

    def forward(self, p):
        return self.gemv(p.o, p.W, p.h, p.inputIdx, p.outputIdx)

    def gradient_in_h(self, p):
        return self.gemv(p.h, p.W, p.y, p.outputIdx, p.inputIdx, lambda W: W.transpose(1, 0, 3, 2))

    def outer_arguments(self, p):
        arrays = {"x": p.h, "y": p.y, "xIdx": p.inputIdx, "yIdx": p.outputIdx}
        return [symbol(*item) for item in arrays.items()], list(arrays.values())

    def outer_in_place(self, p):
        W = shared(p.W, "W")
        inputs, arrays = self.outer_arguments(p)
        updates = {W: sparse_block_outer(W, *inputs, ALPHA)}
        f = self.compiled(SparseBlockOuter, inputs, updates=updates)
        return Call(partial(f, *arrays), lambda _: [W.get_value(borrow=True)])

    def outer_into_zeros(self, p):
        inputs, arrays = self.outer_arguments(p)
        result = sparse_block_outer(zeros_like(shared(p.W, "W")), *inputs)
        f = self.compiled(SparseBlockOuter, inputs, Out(result, borrow=True))
        return Call(partial(f, *arrays))

    def training_step(self, p, bias=True):
        W = shared(p.W, "W")
        parameters = [W, shared(p.b, "b")] if bias else [W]
        arrays = {"h": p.h, "inputIdx": p.inputIdx, "outputIdx": p.outputIdx}
        h, inputIdx, outputIdx = inputs = [symbol(*item) for item in arrays.items()]
        b = parameters[1] if bias else None
        loss = (sparse_block_dot(W, h, inputIdx, b, outputIdx) ** 2).mean()
        rate = np.asarray(LEARNING_RATE, p.dtype)
        gradients = pt.grad(loss, parameters)
        updates = [(v, v - rate * g) for v, g in zip(parameters, gradients, strict=True)]
        f = self.compiled(SparseBlockOuter, inputs, updates=updates)
        return Call(
            partial(f, *arrays.values()),
            lambda _: [v.get_value(borrow=True) for v in parameters],
        )
