# ruff: noqa: T201
"""What windows take of which half the places are padded, as a share of what full ones take.

    python benchmarks/padding.py                     # in NUMBA, float32, on one thread
    python benchmarks/padding.py --mode CVM --dtype float64

Medians of interleaved rounds. "without" is the op without padding_idx on full windows; the others
have padding_idx=-1: on full windows, on input windows, output windows or both that end in padding,
and on both where any place is padded.
"""

import argparse

from run import hold_threads

if __name__ == "__main__":
    hold_threads(1)

import numpy as np
import pytensor
from ours import symbol
from problems import Problem, cases
from pytensor import In, Out
from report import ms, table
from timing import rounds_of

from blocksparse_ops import SparseBlockGemv, SparseBlockOuter

ROUNDS = 21
PADDING = -1
SMALL = {
    "8 x 8": cases.Sizes(1000, 1000, 8, 8, 4, 4, batch=2000),
    "8 x 8, one output": cases.Sizes(1000, 1, 8, 8, 6, 1, batch=5000),
    "4 x 1": cases.Sizes(1000, 1, 4, 1, 6, 1, batch=10_000),
}
CASES = {name: getattr(cases, name) for name in "MLXSE"} | SMALL


def gemv(padding_idx, o, W, h, inputIdx, outputIdx):
    return SparseBlockGemv(padding_idx=padding_idx)(o, W, h, inputIdx, outputIdx)


def transposed(padding_idx, o, W, h, inputIdx, outputIdx):
    W = W.transpose(1, 0, 3, 2)
    return SparseBlockGemv(padding_idx=padding_idx)(h, W, o, outputIdx, inputIdx)


def outer(padding_idx, o, W, h, inputIdx, outputIdx):
    scale = np.float32(1e-6)  # small enough that thousands of steps stay finite
    return SparseBlockOuter(padding_idx=padding_idx)(W, h, o, inputIdx, outputIdx, scale)


# Each adds to one of o, W and h, in place.
OPS = {"forward": (gemv, 0), "gradient in h": (transposed, 2), "gradient in W": (outer, 1)}


def compiled(op, padding_idx, problem, mode):
    build, written = OPS[op]
    inputs = [symbol("", a) for a in arrays_of(problem)]
    result = Out(build(padding_idx, *inputs), borrow=True)
    inputs[written] = In(inputs[written], mutable=True, borrow=True)
    return pytensor.function(inputs, result, mode=mode)


def arrays_of(problem):
    return [getattr(problem, name) for name in ("o", "W", "h", "inputIdx", "outputIdx")]


def ends_padded(index):
    """Half of a window's places; of windows of one, half of all."""
    index, window = index.copy(), index.shape[1]
    if window > 1:
        index[:, -(window // 2) :] = PADDING
    else:
        index[::2] = PADDING
    return index


def any_padded(index):
    """As many of each window's places, but any of them."""
    return np.random.default_rng(0).permuted(ends_padded(index), axis=-(index.shape[1] > 1))


def windows(problem):
    """Indices of both sides, by the columns of the table."""
    full = problem.inputIdx, problem.outputIdx
    ended = [ends_padded(index) for index in full]
    return {
        "full": full,
        "inputs": (ended[0], full[1]),
        "outputs": (full[0], ended[1]),
        "both": ended,
        "both, anywhere": [any_padded(index) for index in full],
    }


def row(name, op, arguments):
    problem = Problem(name, CASES[name], arguments.dtype)
    *arrays, _, _ = arrays_of(problem)
    without, padded = (
        compiled(op, padding_idx, problem, arguments.mode) for padding_idx in (None, PADDING)
    )
    columns = windows(problem)
    runs = {"without": lambda: without(*arrays, *columns["full"])}
    for column, indices in columns.items():
        runs[column] = lambda indices=indices: padded(*arrays, *indices)
    taken = {column: np.median(seconds) for column, seconds in rounds_of(runs, ROUNDS).items()}
    shares = [f"{taken[column] / taken['without']:.2f}" for column in columns]
    return [name, op, ms(taken["without"]), *shares]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", default="NUMBA", help="PyTensor's (%(default)s)")
    parser.add_argument("--dtype", default="float32", help="(%(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    rows = [row(name, op, arguments) for name in arguments.cases for op in OPS]
    columns = ["full", "inputs", "outputs", "both", "both, anywhere"]
    print(table(["case", "op", "without", *columns], rows))


if __name__ == "__main__":
    main()
