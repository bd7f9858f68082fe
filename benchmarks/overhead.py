"""What a call of the ops costs beyond a call of PyTensor, beside an op that does nothing."""

from functools import partial

import pytensor
from contenders import OURS
from memory import settled
from ours import shared, symbol
from problems import CASES, Problem
from pytensor import In, Out
from pytensor.graph.basic import Apply
from pytensor.link.c.op import COp
from pytensor.link.numba.dispatch import basic
from timing import rounds_of, summary

from blocksparse_ops import sparse_block_dot, sparse_block_gemv

SLOT_SECONDS = 10e-3


class First(COp):
    """Its first input, whatever the others are."""

    __props__ = ()
    view_map = {0: [0]}  # noqa: RUF012

    def make_node(self, *inputs):
        return Apply(self, list(inputs), [inputs[0].type()])

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = inputs[0]

    def c_code(self, node, name, inputs, outputs, sub):
        (out,) = outputs
        return f"Py_XDECREF({out}); {out} = {inputs[0]}; Py_INCREF({out});"

    def c_code_cache_version(self):
        return (1,)


@basic.register_funcify_default_op_cache_key(First)
def numba_funcify_first(op, **kwargs):
    @basic.numba_njit
    def first(*inputs):
        return inputs[0]

    return first, 1


def functions(op, problem, mode):
    """A call of the op, and one of `First` on the same inputs."""
    p = problem
    W, b = shared(p.W, "W"), shared(p.b, "b")
    indices = {"inputIdx": p.inputIdx, "outputIdx": p.outputIdx}
    if op is sparse_block_gemv:
        arrays = {"o": settled(p.o), "h": p.h, **indices}
        o, h, inputIdx, outputIdx = inputs = [symbol(*item) for item in arrays.items()]
        inputs[0] = In(o, mutable=True, borrow=True)
        arguments = [o, W, h, inputIdx, outputIdx]
        first = First()(*arguments)
    else:
        arrays = {"h": p.h, **indices}
        h, inputIdx, outputIdx = inputs = [symbol(*item) for item in arrays.items()]
        arguments = [W, h, inputIdx, b, outputIdx]
        first = First()(h, W, inputIdx, b, outputIdx)
    return [
        partial(pytensor.function(inputs, Out(result, borrow=True), mode=mode), *arrays.values())
        for result in (op(*arguments), first)
    ]


def overhead_study(options):
    """Microseconds a call on the tiny case T."""
    problem = Problem("T", CASES["T"], "float32")
    for op in (sparse_block_gemv, sparse_block_dot):
        quantity = "sparse_block_dot" if op is sparse_block_dot else "sparse_block_gemv"
        for name in [name for name in options.contenders if name in OURS]:
            call, first = functions(op, problem, OURS[name])
            times = rounds_of(
                {"op": call, "identity": first}, options.rounds, slot_seconds=SLOT_SECONDS
            )
            above = [a - b for a, b in zip(times["op"], times["identity"], strict=True)]
            yield {
                "quantity": quantity,
                "contender": name,
                "op": summary(times["op"]),
                "identity": summary(times["identity"]),
                "above": summary(above),
            }
