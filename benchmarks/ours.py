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

    in_place = True

    def __init__(self, mode, openmp=False):
        self.mode = mode
        self.openmp = openmp

    def compiled(self, op, inputs, outputs=None, updates=None):
        """A function that is known to work in place: a copy would be timed otherwise."""
        with config.change_flags(openmp=self.openmp, on_opt_error="raise"):
            f = pytensor.function(inputs, outputs, updates=updates, mode=self.mode)
        ops = [node.op for node in f.maker.fgraph.apply_nodes]
        assert op(inplace=self.in_place) in ops
        assert not any(isinstance(op, DeepCopyOp) for op in ops)
        return f

    def call(self, op, inputs, arrays, result=None, updates=None):
        """A call of the compiled graph; of updates, the values are the variables updated."""
        outputs = None if result is None else Out(result, borrow=True)
        run = partial(self.compiled(op, inputs, outputs, updates), *arrays)
        if updates is None:
            return Call(run)
        return Call(run, lambda _: [v.get_value(borrow=True) for v in updates])

    def gemv(self, o, W, h, inputIdx, outputIdx, transpose=lambda W: W):
        arrays = {"o": o.copy(), "h": h, "inputIdx": inputIdx, "outputIdx": outputIdx}
        o, h, inputIdx, outputIdx = (symbol(*item) for item in arrays.items())
        result = sparse_block_gemv(o, transpose(shared(W, "W")), h, inputIdx, outputIdx)
        inputs = [In(o, mutable=True, borrow=True), h, inputIdx, outputIdx]
        return self.call(SparseBlockGemv, inputs, arrays.values(), result)

    def forward(self, p):
        return self.gemv(p.o, p.W, p.h, p.inputIdx, p.outputIdx)

    def gradient_in_h(self, p):
        return self.gemv(p.h, p.W, p.y, p.outputIdx, p.inputIdx, lambda W: W.transpose(1, 0, 3, 2))

    def outer_arguments(self, p):
        arrays = {"x": p.h, "y": p.y, "xIdx": p.inputIdx, "yIdx": p.outputIdx}
        return [symbol(*item) for item in arrays.items()], arrays.values()

    def outer_in_place(self, p):
        W = shared(p.W, "W")
        inputs, arrays = self.outer_arguments(p)
        updates = {W: sparse_block_outer(W, *inputs, ALPHA)}
        return self.call(SparseBlockOuter, inputs, arrays, updates=updates)

    def outer_into_zeros(self, p):
        inputs, arrays = self.outer_arguments(p)
        result = sparse_block_outer(zeros_like(shared(p.W, "W")), *inputs)
        return self.call(SparseBlockOuter, inputs, arrays, result)

    def training_step(self, p, bias=True):
        W = shared(p.W, "W")
        parameters = [W, shared(p.b, "b")] if bias else [W]
        arrays = {"h": p.h, "inputIdx": p.inputIdx, "outputIdx": p.outputIdx}
        h, inputIdx, outputIdx = inputs = [symbol(*item) for item in arrays.items()]
        b = parameters[1] if bias else None
        loss = (sparse_block_dot(W, h, inputIdx, b, outputIdx) ** 2).mean()
        rate = np.asarray(LEARNING_RATE, p.dtype)
        gradients = pt.grad(loss, parameters)
        updates = {v: v - rate * g for v, g in zip(parameters, gradients, strict=True)}
        return self.call(SparseBlockOuter, inputs, arrays.values(), updates=updates)


class OursPyTorch(Ours):
    """The ops in PyTorch, which PyTensor gives what NumPy holds."""

    in_place = False

    def __init__(self):
        super().__init__("PYTORCH")


class OursJAX(Ours):
    """The ops in JAX, on arrays of JAX: PyTensor would copy those of NumPy at each call."""

    in_place = False

    def __init__(self):
        super().__init__("JAX")

    def compiled(self, *args):
        """A function that takes arrays of JAX, and waits for its results."""
        from jax import block_until_ready
        from jax.numpy import asarray

        f = super().compiled(*args)
        f.trust_input = True
        storages = [variable.container.storage for variable in f.get_shared()]
        for storage in storages:
            storage[0] = asarray(storage[0])
        return lambda *arrays: block_until_ready((f(*arrays), storages))[0]

    def call(self, op, inputs, arrays, result=None, updates=None):
        from jax.numpy import asarray

        return super().call(op, inputs, [asarray(a) for a in arrays], result, updates)
