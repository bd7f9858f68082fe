# ruff: noqa: T201
"""Random training graphs, rewritten and as they stand: the values must agree. And where an index
is out of range, nothing may have been written.

`python tests/random_graphs.py --seconds 600` draws graphs for that long, and prints the seed of
each that fails; `--seed` starts from one. Each graph may take 10 s, and the process 4 GiB: PyTensor
keeps what it has found out about each op, so start anew after some 5,000 graphs.
"""

import argparse
import resource
import signal
import time
import traceback
from contextlib import contextmanager
from dataclasses import astuple, replace
from unittest.mock import patch

import numpy as np
import pytensor
import pytensor.tensor as pt
from cases import Draw, Sizes
from lighter import AS_IT_STANDS, IN_PYTHON
from pytensor.compile import optdb
from pytensor.compile.builders import OpFromGraph
from pytensor.compile.mode import Mode
from pytensor.graph.traversal import ancestors
from pytensor.ifelse import ifelse
from pytensor.scalar import Reciprocal

from blocksparse_ops import (
    SparseBlockGemv,
    SparseBlockOuter,
    sparse_block_dot,
    sparse_block_take,
    updates,
)
from blocksparse_ops.zeros import zeros_like

# One of PyTensor's own rewrites fails in 3.0 where what it adds is broadcast, and another where an
# einsum of windows is differentiated twice.
REWRITTEN = Mode(IN_PYTHON, "fast_run").excluding("local_add_of_sparse_write")
PYTENSORS = REWRITTEN.excluding("blocksparse")  # what fails by these alone is not ours
COMPILES_EINSUMS = not pytensor.__version__.startswith("3.0.")

# Of every fourth graph one of the package's rewriters is left out, in turn.
REWRITERS = sorted(rewriter.name for rewriter in optdb.__db__["blocksparse"])

SECONDS, BYTES = 10, 4 << 30

OPTIMIZERS = (
    updates.sgd,
    updates.momentum,
    updates.nesterov_momentum,
    updates.adagrad,
    updates.rmsprop,
    updates.adam,
    updates.adamw,
)

# Names no block, and no number in the place of a block that is padded either.
OUT_OF_RANGE = 99

# How much of each size is known when the graph is built: all, nothing, or an axis here and there.
KNOWN = (1.0, 0.0, 0.5)


class RandomGraph:
    """Parameters of one shape, gradients in them, and updates that combine them.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        size = lambda *sizes: int(self.rng.choice(sizes))  # noqa: E731
        self.sizes = Sizes(
            iBlocks=size(1, 1, 2, 3),
            oBlocks=size(1, 2, 3),
            iSize=size(0, 1, 1, 2, 3),
            oSize=size(1, 1, 2, 3),
            iWin=size(0, 1, 2),
            oWin=size(1, 2),
            batch=size(0, 1, 2, 3),
        )
        s = self.sizes
        self.shape = (s.iBlocks, s.oBlocks, s.iSize, s.oSize)
        self.dtype = str(self.rng.choice(["float64", "float64", "float32"]))
        self.inputs, self.values, self.indices = [], [], []
        self.parameters = [self.parameter() for _ in range(self.rng.integers(1, 4))]
        self.states = []
        self.rate = self.variable(self.array())
        self.count = self.variable(np.array(3))

    def choose(self, *options):
        return options[self.rng.integers(len(options))]

    def array(self, *shape):
        return np.asarray(self.rng.normal(size=shape), self.choose(self.dtype, "float64"))

    def known(self, shape):
        """A static shape: each size is known or not."""
        share = self.choose(*KNOWN)
        return tuple(size if self.rng.random() < share else None for size in shape)

    def parameter(self):
        value = np.asarray(self.rng.normal(size=self.shape), self.dtype)
        return pytensor.shared(value, shape=self.known(self.shape))

    def variable(self, value):
        """An input of this value."""
        variable = pt.tensor(dtype=value.dtype, shape=self.known(value.shape))
        self.inputs.append(variable)
        self.values.append(value)
        return variable

    def window(self, sizes=None):
        """Arguments of a product: h and both indices, o of its result."""
        dtypes = self.choose("int64", "int32", "uint8"), self.choose("int64", "int8")
        draw = Draw(sizes or self.sizes, int(self.rng.integers(1 << 30)), self.dtype, dtypes)
        arrays = draw.gemv()
        h, i, j, o = (self.variable(arrays[k]) for k in ("h", "inputIdx", "outputIdx", "o"))
        self.indices += [i, j]
        return h, i, j, o

    def padding(self):
        """What names no block: nothing, another number, or one that indices have."""
        return self.choose(None, 100, 0)

    def view(self, W):
        """Weights that lie in a parameter, and the sizes of a product with them."""
        s = self.sizes
        turned = replace(s, iBlocks=s.oBlocks, oBlocks=s.iBlocks, iSize=s.oSize, oSize=s.iSize)
        in_a_row = replace(s, iBlocks=1, oBlocks=s.iBlocks * s.oBlocks)
        other = self.choose(turned, in_a_row) if s.iSize else s
        return self.choose(
            lambda: (W, s),
            lambda: (W, s),
            lambda: (W[::-1], s),
            lambda: (W[:, ::-1], s),
            lambda: (self.reshaped(W, (-1,), W.shape), s),
            lambda: (pt.stack([W, W])[self.choose(0, self.count - 3)], s),
            lambda: (W.transpose(1, 0, 3, 2), turned),
            lambda: (self.reshaped(W, self.shape_of(other)), other),
        )()

    def shape_of(self, sizes):
        """The shape of weights, some of whose sizes the graph computes."""
        shape = (sizes.iBlocks, sizes.oBlocks, sizes.iSize, sizes.oSize)
        return [self.choose(size, self.count - 3 + size) for size in shape]

    def reshaped(self, x, *shapes):
        """`x` in these shapes in turn, unless it has no elements: in 3.3 and before, PyTensor then
        takes a size that it does not know for 0."""
        for shape in shapes if self.sizes.iSize else ():
            x = x.reshape(shape)
        return x

    def product(self, W):
        W, sizes = self.view(W)
        h, i, j, o = self.window(sizes)
        bias, padding_idx = pt.ones((W.shape[1], W.shape[3]), self.dtype), self.padding()
        gemv = SparseBlockGemv(padding_idx=padding_idx)
        return self.choose(
            lambda: sparse_block_dot(W, h, i, None, j, padding_idx),
            lambda: sparse_block_dot(W, h, i, bias, j, padding_idx),
            lambda: gemv(o, W, h, i, j),
            lambda: gemv(pt.zeros_like(o), W, h, i, j) + o * 2 + 1,
            lambda: self.gathered(W, h, i, j) if sizes.iWin else gemv(o, W, h, i, j),
            lambda: self.gathered_windows(W, h, i, j, o, sizes),
        )()

    def gathered_windows(self, W, h, i, j, o, sizes):
        """What one writes by hand for windows of one side or both, and for rows of a table."""
        if not all(astuple(sizes)):  # of nothing PyTensor makes no einsum of windows
            return SparseBlockGemv()(o, W, h, i, j)
        of_outputs, of_inputs = W[0][j], W[:, 0][i]
        einsums = [
            lambda: pt.einsum("np,nwpq->nwq", h.sum(1), of_outputs),
            lambda: pt.einsum("nvpq,nvp->nq", of_inputs, h),
            lambda: pt.einsum("nvp,nvwpq->nwq", h, W[i[:, :, None], j[:, None, :]]),
        ]
        return self.choose(
            lambda: (h[:, 0, None, None] @ of_outputs)[:, :, 0],
            lambda: (h.sum(1)[:, None, :, None] * of_outputs).sum(2),
            lambda: (h[:, :, None] @ of_inputs).sum(1),
            lambda: (of_inputs * h[..., None]).sum((1, 2)),
            lambda: (o * W[0, :, 0][j]).sum(-1),
            lambda: (h.sum(-1)[:, :, None] * W[:, 0, 0][i]).sum(1),
            *(einsums if COMPILES_EINSUMS else []),
        )()

    def gathered(self, W, h, i, j):
        """What one writes by hand for a product with one block an example."""
        row, one, other = h[:, 0], i[:, 0], j[:, 0]
        blocks = self.choose(lambda: W[one, other], lambda: W[0][other])()
        return self.choose(
            lambda: row[:, None] @ blocks,
            lambda: pt.einsum("np,npq->nq", row, blocks)[:, None],
            lambda: (blocks.transpose(0, 2, 1) @ row[:, :, None]).transpose(0, 2, 1),
            lambda: pt.matmul(row[:, None], blocks * 2),
        )()

    def loss(self, W):
        y = self.product(W)
        return self.choose(
            lambda: (y**2).sum(),
            lambda: pt.tanh(y).mean() if self.sizes.batch else y.sum(),
            lambda: (y * y.sum()).sum(),
            lambda: (y**2).sum() + (self.product(W) ** 2).sum(),
            lambda: sum_over_steps(W, *self.window()),
            lambda: (self.rows(W) ** 2).sum(),
        )()

    def rows(self, W):
        """Rows of a block, as of a table."""
        rows = self.sizes.iSize
        index = self.rng.integers(-rows, rows, (2,)) if rows else np.zeros(0, int)
        return sparse_block_take(W[0, -1], self.variable(index), self.padding())

    def gradient(self):
        """A gradient in a parameter, of a loss or of a gradient, or an outer product."""
        W = self.choose(*self.parameters)
        h, i, j, o = self.window()
        outer = SparseBlockOuter(padding_idx=self.padding())
        x = self.choose(
            lambda: pt.grad(self.loss(W), W),
            lambda: pt.grad(self.loss(W), W),
            lambda: pt.grad((pt.grad(self.loss(W), W) * W).sum(), W),
            lambda: outer(self.zeros(), h, o, i, j, self.scalar()),
            lambda: outer(self.term(0), h, o, i, j, self.scalar()),
        )()
        return x

    def scalar(self):
        """A scale of any kind."""
        return self.choose(
            lambda: self.rng.choice([-1.0, 0.0, 0.5, 2.0]),
            lambda: np.float32(0.5),
            lambda: 3,
            lambda: self.rate,
            lambda: self.count,
            lambda: self.choose(*self.parameters).sum() / 100 + 1,
            lambda: pytensor.shared(np.asarray(0.5, self.dtype)),
            lambda: self.chosen(self.loss(self.choose(*self.parameters)) / 100, self.rate),
        )()

    def divisor(self):
        return self.choose(2.0, np.float32(3), self.count, pt.exp(self.rate))

    def zeros(self):
        """Zeros of the parameters' shape, however they are made."""
        W = self.choose(*self.parameters)
        return self.choose(
            lambda: zeros_like(W),
            lambda: pt.zeros_like(W),
            lambda: pt.zeros(self.shape, self.dtype),
            lambda: pt.constant(np.zeros(self.shape)),
            lambda: pt.zeros(W.shape, "int8").astype(self.dtype),
            lambda: self.variable(np.zeros(self.shape)) * 0,
        )()

    def small(self):
        """What is broadcast to the parameters' shape."""
        i, j, p, q = self.shape
        return self.choose(
            lambda: self.variable(self.array(p, q))[None, None],
            lambda: self.variable(self.array(i, j))[:, :, None, None],
            lambda: (
                self.variable(self.array(p, q))[None, None]
                + self.variable(self.array(i, j))[:, :, None, None]
            ),
            lambda: pt.zeros((self.choose(self.count // 3, i), 1, 1, 1)),
            lambda: pt.constant(np.zeros((1, 1, p, 1))),
            lambda: self.rate,
        )()

    def term(self, depth):
        """A value of the parameters' shape, as a rule."""
        if depth == 0:
            return self.choose(
                lambda: self.choose(*self.parameters),
                self.gradient,
                self.gradient,
                self.zeros,
            )()
        x = self.term(depth - 1)
        others = [lambda: self.term(0), lambda: self.term(depth - 1), self.small]
        return self.choose(
            lambda: x + self.choose(*others)(),
            lambda: x - self.choose(*others)(),
            lambda: self.choose(*others)() - x,
            lambda: x + self.choose(*others)() * self.scalar(),
            lambda: self.choose(*self.parameters) - self.scalar() * x,
            lambda: x * self.scalar(),
            lambda: -x,
            lambda: x / self.divisor(),
            lambda: x / (1 + self.choose(*self.parameters) ** 2),
            lambda: x.astype(self.choose("float32", "float64")),
            lambda: x.transpose(1, 0, 3, 2).transpose(1, 0, 3, 2),
            lambda: self.reshaped(x, x.shape),
            lambda: x[: self.shape[0]],
            lambda: pt.set_subtensor(x[0], x[0] * 2),
            lambda: pt.clip(x, -0.5, 0.5),
            lambda: pt.switch(pt.gt(self.rate, 0), x, self.term(0)),
            lambda: pt.switch(pt.gt(self.rate, 0), x - self.scalar() * self.gradient(), x),
            lambda: x - pt.switch(pt.isfinite(self.rate), 0, self.rate) * self.gradient(),
            lambda: x / (1 + pt.sqrt((x**2).sum())),
            lambda: clipped(x),
            lambda: x * self.scalar() - x / self.divisor(),
            lambda: self.either_way(x, self.gradient()),
            lambda: pt.inc_subtensor(x[1:], self.scalar() * self.gradient()[1:]),
            lambda: pt.set_subtensor(x[:, :1], x[:, :1] - self.gradient()[:, :1]),
            lambda: pt.specify_shape(x, self.known(self.shape)),
            lambda: in_a_graph_of_its_own(x, self.term(0)),
            lambda: self.chosen(x, self.term(0)),
        )()

    def either_way(self, x, g):
        """One of two steps by the same gradient."""
        one, other = self.scalar(), self.scalar()
        return pt.switch(pt.gt(self.rate, 0), x - one * g, x - other * g)

    def optimizer(self):
        """A step of an optimizer, of a loss of some parameters."""
        count = int(self.rng.integers(1, len(self.parameters) + 1))
        chosen = self.parameters[:count]
        loss = sum(self.loss(W) for W in chosen)
        grads = updates.get_or_compute_grads(loss, chosen)
        if self.rng.random() < 0.3:
            grads = updates.clip_by_global_norm(grads, 0.5)
        new = self.choose(*OPTIMIZERS)(grads, chosen, learning_rate=self.rate / 10)
        self.states = [x for x in new if x not in chosen]
        for state in self.states:
            value = state.get_value()
            state.set_value(np.abs(self.rng.normal(size=value.shape)).astype(value.dtype))
        return new

    def chosen(self, x, y):
        """One of two, of which the other is not computed."""
        y = pt.specify_shape(y.astype(x.dtype), x.type.shape)
        return ifelse(pt.gt(self.rate, 0), x, y)

    def updates(self):
        """New values of some parameters, each made from the old ones."""
        new = self.optimizer() if self.rng.random() < 0.2 else {}
        for parameter in self.parameters:
            if parameter in new:
                continue
            if not new or self.rng.random() < 0.6:
                value = self.term(int(self.rng.integers(1, 4))).astype(self.dtype)
                pairs = zip(value.type.shape, parameter.type.shape, strict=True)
                if any(size == 1 != known for size, known in pairs):
                    # PyTensor refuses a value of which it knows more.
                    value = (parameter - self.rate * value).astype(self.dtype)
                new[parameter] = value
        return new


def clipped(x):
    """As it is, or scaled to a norm of 1."""
    norm = pt.sqrt((x**2).sum())
    return pt.switch(norm > 1, x / norm, x)


def in_a_graph_of_its_own(x, y):
    """x + y through an OpFromGraph."""
    one, other = x.type(), y.type()
    return OpFromGraph([one, other], [one + other])(x, y)


def sum_over_steps(W, h, i, j, o):
    """A loss that a Scan sums up over two steps."""
    losses = pytensor.scan(
        lambda scale, W, h, i, j: (sparse_block_dot(W, h * scale, i, None, j) ** 2).sum(),
        sequences=[np.array([1.0, 0.5])],
        non_sequences=[W, h, i, j],
        return_updates=False,
    )
    return losses.sum()


def compiled(graph, updates, outputs, mode):
    return pytensor.function(
        graph.inputs, outputs, updates=updates, mode=mode, on_unused_input="ignore"
    )


@contextmanager
def kept(graph):
    """Gives the parameters and an optimizer's arrays, each with its value, to which it returns."""
    before = [(x, x.get_value()) for x in (*graph.parameters, *graph.states)]
    try:
        yield before
    finally:
        for shared, value in before:
            shared.set_value(value)


def run(graph, function):
    """The outputs and the new values, or the error."""
    with kept(graph) as before:
        try:
            results = [np.array(x) for x in function(*graph.values)]
            return results + [shared.get_value() for shared, _ in before]
        except (ValueError, TypeError, AssertionError, NotImplementedError) as error:
            return error


def check_all_or_nothing(graph, function):
    """Each index in turn is out of range; PyTensor's own gathers may find it after a step."""
    for index in graph.indices:
        values = [value.copy() for value in graph.values]
        wrong = values[graph.inputs.index(index)]
        if wrong.size:
            wrong.flat[-1] = OUT_OF_RANGE
        with kept(graph) as before:
            try:
                function(*values)
            except IndexError as error:
                if "SparseBlock" in str(error):
                    for shared, value in before:
                        np.testing.assert_array_equal(shared.get_value(), value)
            except (ValueError, TypeError, AssertionError, NotImplementedError):
                pass


def rewritten(seed):
    """The mode of a seed's graph."""
    name = REWRITERS[seed // 4 % len(REWRITERS)]
    return REWRITTEN.excluding(name) if seed % 4 == 0 else REWRITTEN


def reciprocal(self, x):
    """PyTensor's own has the precision of float32, which an op that is fused runs in Python."""
    return np.float64(1) / x


def compare(seed, mode):
    """Raise unless the graph of this seed has the same values in this mode as it stands."""
    graph = RandomGraph(seed)
    updates = graph.updates()
    outputs = [graph.term(1)] if graph.rng.random() < 0.3 else []
    # Without a compiler, which would be called for each constant that is folded, each Scan and, in
    # the default mode, Numba's, each op that is a graph.
    flags = pytensor.config.change_flags(cxx="", on_opt_error="raise", mode="FAST_COMPILE")
    with flags, patch.object(Reciprocal, "impl", reciprocal):
        expected = run(graph, compiled(graph, updates, outputs, AS_IT_STANDS))
        function = compiled(graph, updates, outputs, mode)
        actual = run(graph, function)
        if mode is REWRITTEN:
            check_all_or_nothing(graph, function)
    if isinstance(expected, Exception):
        # PyTensor takes away zeros that are added, of whatever shape.
        return
    if isinstance(actual, Exception):
        raise AssertionError("an error after rewriting alone") from actual
    dtypes = {x.dtype for x in ancestors([*updates.values(), *outputs]) if hasattr(x, "dtype")}
    eps = np.finfo("float32" if "float32" in dtypes else "float64").eps
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        scale = 1e4 * eps * max(1, np.abs(other).max(initial=0))
        np.testing.assert_allclose(one, other, rtol=scale, atol=scale)


def error_of(seed, mode):
    """What the graph of this seed raises in this mode, with where it was, if it does."""
    try:
        with time_limit(SECONDS):
            compare(seed, mode)
    except Exception:
        return traceback.format_exc()
    return None


@contextmanager
def time_limit(seconds):
    """Raise a TimeoutError after these seconds of the processor's time, however busy it is."""

    def expire(signum, frame):
        raise TimeoutError(f"took more than {seconds} s")

    previous = signal.signal(signal.SIGPROF, expire)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long to go on")
    parser.add_argument("--cases", type=int, help="how many graphs, at the most")
    parser.add_argument("--seed", type=int, default=0, help="of the first graph")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    # Else PyTensor looks for the line that makes each variable.
    pytensor.config.traceback__limit = 0
    start, seed, failures = time.monotonic(), arguments.seed, []
    while time.monotonic() < start + arguments.seconds:
        if arguments.cases is not None and seed == arguments.seed + arguments.cases:
            break
        error = error_of(seed, rewritten(seed))
        if error and not error_of(seed, PYTENSORS):
            print(error)
            print(f"failed: python tests/random_graphs.py --cases 1 --seed {seed}", flush=True)
            failures.append(seed)
        seed += 1
    print(f"{seed - arguments.seed} graphs, {len(failures)} failures: {failures}")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
