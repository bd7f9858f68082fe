# ruff: noqa: T201
"""Processor seconds that a first training step takes, cold and from the disk.

    python benchmarks/compilation.py

A step of six examples with one block of 24 x 5 each, with bias, in float64, beside the same step
written by gathering: each in a process and with a folder of its own for what is compiled, g++ and
all other processes counted; then once more in a new process with the same folder.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile

GROUPS, EXAMPLES, INPUTS, OUTPUTS = 8, 6, 24, 5


def step(form, mode):
    """Compile a training step in one of the forms, and run it once."""
    import numpy as np
    import pytensor
    import pytensor.tensor as pt

    W = pytensor.shared(np.ones((1, GROUPS, INPUTS, OUTPUTS)), "W")
    b = pytensor.shared(np.zeros((GROUPS, OUTPUTS)), "b")
    h, index = pt.dmatrix("h"), pt.lvector("index")
    if form == "ours":
        from blocksparse_ops import sparse_block_dot

        zero = pt.zeros_like(index)[:, None]
        y = sparse_block_dot(W, h[:, None], zero, b, index[:, None])[:, 0]
    else:
        y = (h[:, :, None] * W[0][index]).sum(axis=1) + b[index]
    loss = (y**2).mean()
    updates = [(p, p - 0.1 * pt.grad(loss, p)) for p in (W, b)]
    train = pytensor.function([h, index], loss, updates=updates, mode=mode)
    train(np.ones((EXAMPLES, INPUTS)), np.zeros(EXAMPLES, "int64"))


def seconds(form, mode, folder):
    """What a process takes that runs a step, with all that it starts."""
    flags = f"{os.environ.get('PYTENSOR_FLAGS', '')},base_compiledir={folder}"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-W", "ignore", __file__, "--step", form, mode]
    subprocess.run(command, check=True, env={**os.environ, "PYTENSOR_FLAGS": flags})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", nargs="+", default=["NUMBA", "CVM"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step", nargs=2, metavar=("FORM", "MODE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step(*options.step)
        return
    print("mode   form      cold  from the disk")
    for mode in options.modes:
        for form in ("gather", "ours"):
            rounds = []
            for _ in range(options.rounds):
                with tempfile.TemporaryDirectory() as folder:
                    rounds.append([seconds(form, mode, folder) for _ in range(2)])
            cold, warm = map(min, zip(*rounds, strict=True))
            print(f"{mode:6} {form:7} {cold:6.1f} {warm:14.2f}", flush=True)


if __name__ == "__main__":
    main()
