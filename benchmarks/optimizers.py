# ruff: noqa: T201
"""What a step of each optimizer takes on block-sparse weights, few of them in use.

    python benchmarks/optimizers.py                     # in NUMBA, and the figure of the docs
    python benchmarks/optimizers.py --mode CVM

By the blocks in use, as blocksparse_ops.updates does it, and by the dense gradient. Times are
medians of interleaved rounds, of one call after the other.
"""

import argparse
from functools import partial
from pathlib import Path

from run import hold_threads

if __name__ == "__main__":
    hold_threads(1)

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytensor
import pytensor.tensor as pt
from large import Zeros
from ours import shared, symbol
from problems import cases
from report import ms, table
from timing import rounds_of

from blocksparse_ops import sparse_block_dot, updates

RATE = np.float32(1e-3)
ROUNDS = 25
SIDES = (16, 32, 64, 128, 256)  # blocks along either axis of the weights
NAMES = ("sgd", "momentum", "nesterov_momentum", "adagrad", "rmsprop", "adam", "adamw")
CLIPPED = "sgd, clipped"
FIGURE = Path(__file__).parents[1] / "docs" / "performance_optimizers.svg"


def by_blocks(name, loss, W):
    if name == CLIPPED:
        gradients = updates.get_or_compute_grads(loss, [W])
        return updates.sgd(updates.clip_by_global_norm(gradients, 1.0), [W], RATE)
    return getattr(updates, name)(loss, [W], RATE)


def dense(name, loss, W):
    return getattr(updates, name)([pt.grad(loss, W)], [W], RATE)


def step(side, mode, updates_of):
    """A step on a few examples of 8 x 8 blocks of 32 x 32 each."""
    p = Zeros("few", cases.Sizes(side, side, 32, 32, 8, 8, batch=4), "float32")
    W = shared(p.W, "W")
    inputs = h, inputIdx, outputIdx = [symbol("", a) for a in (p.h, p.inputIdx, p.outputIdx)]
    loss = ((sparse_block_dot(W, h, inputIdx, None, outputIdx) - 1) ** 2).mean()
    train = pytensor.function(inputs, updates=updates_of(loss, W), mode=mode)
    return partial(train, p.h, p.inputIdx, p.outputIdx)


def times(mode, kinds):
    """Milliseconds a step of each optimizer, by name, kind and blocks along an axis."""
    taken = {}
    for name in [*NAMES, CLIPPED]:
        keys = {
            f"{name} {kind} {side}": (name, kind, side)
            for kind in kinds
            for side in SIDES
            if not (kind == "dense" and name in ("sgd", CLIPPED))
        }
        runs = {
            key: step(side, mode, partial(kinds[kind], name))
            for key, (_, kind, side) in keys.items()
        }
        taken.update((keys[key], series) for key, series in rounds_of(runs, ROUNDS).items())
    return {key: float(np.median(series)) for key, series in taken.items()}


def draw(taken, path):
    plt.rcParams.update({"svg.hashsalt": "blocksparse_ops", "svg.fonttype": "none"})
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    mib = [side**2 * 32 * 32 * 4 / 2**20 for side in SIDES]
    for colour, name in enumerate(NAMES):
        for kind, line in (("by blocks", "-"), ("dense", "--")):
            series = [1e3 * taken[key] for side in SIDES if (key := (name, kind, side)) in taken]
            if series:
                label = name if kind == "by blocks" else None
                axes.plot(mib, series, line, color=f"C{colour}", marker=".", label=label)
    axes.set(xscale="log", yscale="log", xlabel="size of the weights, MiB", ylabel="ms a step")
    axes.set_xticks(mib, [f"{size:g}" for size in mib])
    axes.legend(title="by the blocks in use;\ndense: broken lines", frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", default="NUMBA", choices=["NUMBA", "CVM"])
    mode = parser.parse_args().mode
    taken = times(mode, {"by blocks": by_blocks, "dense": dense})
    head = [mode, *(f"{side} x {side} blocks" for side in SIDES), "dense", "of sgd's time"]
    last = SIDES[-1]
    rows = [
        [
            name,
            *(ms(taken[name, "by blocks", side]) for side in SIDES),
            ms(taken[name, "dense", last]) if (name, "dense", last) in taken else "",
            f"{taken[name, 'by blocks', last] / taken['sgd', 'by blocks', last]:.2f}",
        ]
        for name in [*NAMES, CLIPPED]
    ]
    print(table(head, rows))
    if mode == "NUMBA":
        draw(taken, FIGURE)


if __name__ == "__main__":
    main()
