"""PyTensor without the ops: gather and matmul, and what it makes of their gradients."""

from functools import partial

import pytensor
import pytensor.tensor as pt
from ours import shared, symbol
from problems import ALPHA, LEARNING_RATE
from pytensor import Out
from timing import Call

from peers import gather


class PyTensorGather:
    gathered_copies = gather.COPIES

    def __init__(self, mode):
        self.mode = mode
        self.only = None if mode == "CVM" else ("M",)

    def forward(self, p):
        arrays = {"o": p.o, "h": p.h, "i": p.inputIdx, "j": p.outputIdx}
        o, h, i, j = inputs = [symbol(*item) for item in arrays.items()]
        result = gather.forward(o, shared(p.W, "W"), h, i, j)
        return self.call(inputs, arrays, result)

    def gradient_in_h(self, p):
        arrays = {"o": p.h, "y": p.y, "i": p.inputIdx, "j": p.outputIdx}
        o, y, i, j = inputs = [symbol(*item) for item in arrays.items()]
        result = gather.gradient_in_h(o, shared(p.W, "W"), y, i, j)
        return self.call(inputs, arrays, result)

    def outer_in_place(self, p):
        W = shared(p.W, "W")
        x, y, i, j = inputs = self.outer_symbols(p)
        added = gather.products(x, y, p.dtype.type(ALPHA))
        updates = {W: pt.inc_subtensor(W[gather.pairs(i, j)], added)}
        return self.call(inputs, self.outer_arrays(p), updates=updates)

    def outer_into_zeros(self, p):
        x, y, i, j = inputs = self.outer_symbols(p)
        zeros = pt.zeros_like(shared(p.W, "W"))
        added = gather.products(x, y, p.dtype.type(1))
        result = pt.inc_subtensor(zeros[gather.pairs(i, j)], added)
        return self.call(inputs, self.outer_arrays(p), result)

    def training_step(self, p):
        W, b = shared(p.W, "W"), shared(p.b, "b")
        arrays = {"h": p.h, "i": p.inputIdx, "j": p.outputIdx}
        h, i, j = inputs = [symbol(*item) for item in arrays.items()]
        loss = (gather.forward(b[j], W, h, i, j) ** 2).mean()
        rate = p.dtype.type(LEARNING_RATE)
        updates = {v: v - rate * g for v, g in zip((W, b), pt.grad(loss, [W, b]), strict=True)}
        return self.call(inputs, arrays, updates=updates)

    def outer_arrays(self, p):
        return {"x": p.h, "y": p.y, "i": p.inputIdx, "j": p.outputIdx}

    def outer_symbols(self, p):
        return [symbol(*item) for item in self.outer_arrays(p).items()]

    def call(self, inputs, arrays, result=None, updates=None):
        """A call of the compiled graph; of updates, the values are the variables updated."""
        outputs = None if result is None else Out(result, borrow=True)
        f = pytensor.function(inputs, outputs, updates=updates, mode=self.mode)
        run = partial(f, *arrays.values())
        if updates is None:
            return Call(run)
        return Call(run, lambda _: [v.get_value(borrow=True) for v in updates])
