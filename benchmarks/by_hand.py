# ruff: noqa: T201
"""Ours against each form that one writes by hand, on blocks of all sizes, above all small ones.

    python benchmarks/by_hand.py                                  # all of it: hours
    python benchmarks/by_hand.py --modes CVM --indices known --dtypes float64 --windows 1
    python benchmarks/by_hand.py --groups 1000 --inputs 4 16 --outputs 1 --quantities forward
    python benchmarks/by_hand.py --recognised                     # what an import brings

Examples with one output block each; W has `groups` blocks. The forms by hand are compiled without
the package's rewrites. With --recognised each of these is compared with itself, compiled with them.
Times are the least of calls in turns, on one thread. A table goes to
stdout, every figure to a JSON file, and a heat map for each width of the window beside it.
"""

import argparse
import json
import logging
from functools import cache, lru_cache, partial
from itertools import product
from pathlib import Path

from run import RESULTS, hold_threads

if __name__ == "__main__":
    hold_threads(1)

import heat_map
import machine
import numpy as np
import pytensor
import pytensor.tensor as pt
from forms import BY_HAND, Form, Ours, Recognised
from pytensor import config
from pytensor.compile.mode import get_mode
from report import by_hand as report
from timing import least_of, seconds

GIB = 2**30
AXES = {
    "modes": ("NUMBA", "CVM", "JAX", "PYTORCH"),
    "windows": (1, 2),
    "dtypes": ("float32", "float64"),
    "indices": ("known", "unknown"),
    "quantities": ("forward", "gradients"),
    "groups": (10, 1_000, 100_000),
    "inputs": (1, 2, 4, 8, 16, 32, 64),
    "outputs": (1, 4, 16, 64),
}
# The modes whose libraries compile for each size: there PyTensor knows them, too.
SIZED = ("JAX", "PYTORCH")
FIELDS = ("mode", "window", "dtype", "indices", "quantity", "groups", "iSize", "oSize")


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, values in AXES.items():
        parser.add_argument(f"--{name}", nargs="+", type=type(values[0]), default=values)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=0.3, help="of timing, for each cell")
    parser.add_argument("--longest", type=float, default=0.5, help="slower forms take no part")
    parser.add_argument("--gibibytes", type=float, default=1, help="of weights, at the most")
    parser.add_argument("--unknown-sizes", action="store_true", help="in JAX and PyTorch, too")
    parser.add_argument("--recognised", action="store_true", help="forms by hand as ours")
    parser.add_argument("--output", type=Path, default=RESULTS / "by_hand.json")
    return parser.parse_args(arguments)


class Cell:
    """One problem, in one mode."""

    def __init__(self, options, **fields):
        self.fields = fields
        self.options = options
        vars(self).update(fields)

    @property
    def gibibytes(self):
        elements = self.groups * self.iSize * self.oSize
        return elements * np.dtype(self.dtype).itemsize / GIB

    @property
    def sized(self):
        """Whether functions are compiled for these sizes."""
        return self.mode in SIZED and not self.options.unknown_sizes

    def comparisons(self):
        """What is compared with each other: forms by name."""
        by_hand = {n: form for n, form in BY_HAND.items() if form.suits(self.iSize, self.oSize)}
        if not self.options.recognised:
            return [{"ours": Ours(self.options.examples), **by_hand}]
        return [{"ours": Recognised(form), name: form} for name, form in by_hand.items()]

    def arrays(self):
        examples, window = self.options.examples, self.window
        rng = np.random.default_rng(0)
        W = rng.random((self.groups, 1, self.iSize, self.oSize), self.dtype)
        h = rng.random((examples, window, self.iSize), self.dtype)
        return W, h, index_of(examples, window, self.groups)

    def calls(self, forms):
        """A call of each form that this mode can compile, and why the others take no part."""
        arrays = self.arrays()
        calls, absent = {}, {}
        for name, form in forms.items():
            arguments = form.arguments(*arrays)
            sizes = [array.shape if self.sized else (None,) * array.ndim for array in arguments]
            known = self.groups if self.indices == "known" else None
            key = self.mode, form, self.quantity, self.window, self.dtype, *sizes
            try:
                f = compiled(*key, self.options.examples, known)
                calls[name] = prepared(self.mode, f, arguments[: len(f.maker.inputs)])
                calls[name]()
            except Exception as error:
                if name == "ours":
                    raise
                absent[name] = type(error).__name__
                calls.pop(name, None)
        return calls, absent

    def measure(self, forms):
        """The least seconds of each form."""
        calls, absent = self.calls(forms)
        check(self.fields, {name: call() for name, call in calls.items()})
        for name in [name for name in calls if name != "ours"]:
            if (taken := seconds(calls[name])) > self.options.longest:
                absent[name] = f"{taken:.1f} s"
                del calls[name]
        return {**self.fields, "times": least_of(calls, self.options.seconds), "absent": absent}


@cache
def index_of(examples, window, groups):
    return np.random.default_rng(1).integers(groups, size=(examples, window))


@lru_cache(maxsize=64)
def compiled(mode, form, quantity, window, dtype, B_shape, h_shape, index_shape, examples, groups):
    """A function of blocks, values and, unless the number of groups is given, the index."""
    B, h = (pt.tensor(dtype=dtype, shape=shape) for shape in (B_shape, h_shape))
    index = pt.tensor(dtype="int64", shape=index_shape)
    inputs = [B, h, index]
    if groups is not None:
        index = index_of(examples, window, groups)
        index = index.reshape(-1) if len(index_shape) == 1 else index
        inputs = [B, h]
    outputs = form.compute(window, B, h, index)
    if quantity == "gradients":
        loss = (outputs**2).sum()
        outputs = [loss, *pt.grad(loss, [B, h])]
    mode = get_mode(mode)
    if isinstance(form, Form):
        mode = mode.excluding("blocksparse")
    # Some of PyTensor's own rewrites fail on some forms, which it survives.
    with config.change_flags(on_opt_error="ignore"):
        f = pytensor.function(inputs, outputs, mode=mode)
    f.trust_input = True
    return f


def prepared(mode, f, arrays):
    """A call on arrays of the mode's library, which waits for its results."""
    if mode != "JAX":
        return partial(f, *arrays)
    import jax

    arrays = [jax.numpy.asarray(array) for array in arrays]
    return lambda: jax.block_until_ready(f(*arrays))


def check(cell, results):
    """Raise if a form computes something else: of large results the first elements are compared."""
    few = {
        name: [np.asarray(x).reshape(-1)[: 1 << 16] for x in (r if isinstance(r, list) else [r])]
        for name, r in results.items()
    }
    for name, values in few.items():
        for actual, expected in zip(values, few["ours"], strict=True):
            np.testing.assert_allclose(actual, expected, 1e-3, 1e-3, err_msg=f"{name} of {cell}")


def compile_each_shape():
    """PyTorch's compiler then knows all sizes, as it does in a program that has but one."""
    import torch

    # It tells at length of each graph that it breaks.
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    torch._dynamo.config.automatic_dynamic_shapes = False
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10**6


def forget_compiled():
    """A call searches what PyTorch has compiled for other cells: that takes up to a millisecond."""
    import torch

    compiled.cache_clear()
    torch.compiler.reset()


def study(options):
    """A record of each cell, those of one compiled function one after the other."""
    if "PYTORCH" in options.modes:
        compile_each_shape()
    for values in product(*(getattr(options, name) for name in AXES)):
        cell = Cell(options, **dict(zip(FIELDS, values, strict=True)))
        if cell.mode == "PYTORCH":
            forget_compiled()
        if cell.gibibytes <= options.gibibytes:
            yield from map(cell.measure, cell.comparisons())


def main():
    options = parse()
    results = {"settings": vars(options) | {"output": options.output.name}, **machine.describe()}
    results["by_hand"] = []
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for record in study(options):
        results["by_hand"].append(record)
        options.output.write_text(json.dumps(results) + "\n")
    print(*report(results), sep="\n\n")
    print(options.output, *heat_map.draw(results["by_hand"], options.output), sep="\n")


if __name__ == "__main__":
    main()
