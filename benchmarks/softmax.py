# ruff: noqa: T201
"""What a training step of a softmax over a million outputs takes, in two levels and in one.

    python benchmarks/softmax.py     # each in a process of its own, in PyTensor's default mode

A step of gradient descent on 128 examples of 64 features, in float32, on one thread. The memory is
by how much the peak of the process exceeds what it holds before the first step.
"""

import subprocess
import sys
import time

from peak_memory import MIB, peak
from report import ms, table
from run import hold_threads

if __name__ == "__main__":
    hold_threads(1)

import numpy as np
import pytensor
import pytensor.tensor as pt

from blocksparse_ops import log_h_softmax, updates

CLASSES, OUTPUTS, FEATURES, BATCH = 1000, 1_000_000, 64, 128
CALLS = 10


def parameter(*shape):
    return pytensor.shared(np.zeros(shape, "float32"), borrow=True)


def two_levels(x, target):
    of_class = OUTPUTS // CLASSES
    weights = [parameter(FEATURES, CLASSES), parameter(CLASSES)]
    weights += [parameter(CLASSES, FEATURES, of_class), parameter(CLASSES, of_class)]
    log_p = log_h_softmax(x, x.shape[0], OUTPUTS, CLASSES, of_class, *weights, target)
    return log_p, weights


def one_level(x, target):
    W, b = parameter(FEATURES, OUTPUTS), parameter(OUTPUTS)
    log_p = pt.special.log_softmax(x @ W + b, axis=-1)
    return log_p[pt.arange(target.shape[0]), target], [W, b]


FORMS = {"two levels": two_levels, "one": one_level}


def measure(form):
    """The least seconds of a step, and the bytes that it takes at the most."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(BATCH, FEATURES)).astype("float32"), rng.integers(OUTPUTS, size=BATCH)
    x, target = pt.fmatrix("x"), pt.lvector("target")
    log_p, weights = FORMS[form](x, target)
    train = pytensor.function([x, target], updates=updates.sgd(-log_p.mean(), weights, 0.1))
    train(*(value[:2] for value in values))
    before = peak()
    seconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        train(*values)
        seconds.append(time.perf_counter() - start)
    return min(seconds), peak() - before


def row(form):
    """The same, in words, by a process that has done nothing else."""
    command = [sys.executable, "-W", "ignore", __file__, form]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, held = run.stdout.split()
    return [form, ms(float(seconds)), f"{int(held) / MIB:.0f} MiB"]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(*measure(sys.argv[1]))
    else:
        print(table(["levels", "a step", "memory"], [row(form) for form in FORMS]))
