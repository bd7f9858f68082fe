# ruff: noqa: T201
"""What a forward product holds beside its arguments and result, and what a gather holds.

    python benchmarks/peak_memory.py     # each mode that is installed, in processes of their own

XLA says what it takes for JAX's; of the others it is by how much the peak of the process grows
from a call with three examples to one with all. A gather that PyTensor cannot compile is absent.
"""

import argparse
import resource
import subprocess
import sys
from importlib.util import find_spec

import numpy as np

MODES = {"CVM": None, "NUMBA": None, "JAX": "jax", "PYTORCH": "torch", "MLX": "mlx"}
FORMS = ("ours", "gather")
CASES = "MLE"
MIB = 2**20


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def arrays_of(case):
    from problems import CASES, Problem

    p = Problem(case, CASES[case], "float32")
    return p.o, p.W, p.h, p.inputIdx, p.outputIdx


def compiled(form, mode, arrays, known_sizes=False):
    import pytensor
    import pytensor.tensor as pt
    from peers import gather

    from blocksparse_ops import sparse_block_gemv

    product = {"ours": sparse_block_gemv, "gather": gather.forward}[form]
    shapes = [x.shape if known_sizes else (None,) * x.ndim for x in arrays]
    inputs = [pt.tensor(dtype=x.dtype, shape=s) for x, s in zip(arrays, shapes, strict=True)]
    return pytensor.function(inputs, product(*inputs), mode=mode)


def compiled_by_torch():
    """PyTensor's PyTorch cannot reshape to sizes that it does not know."""
    import torch
    from peers import gather

    f = torch.compile(gather.forward, dynamic=True)
    return lambda *arrays: f(*map(torch.from_numpy, arrays))


def held(form, mode, case):
    """Bytes that a call takes."""
    o, W, h, i, j = arrays = arrays_of(case)
    if mode == "JAX":
        import jax

        f = jax.jit(compiled(form, mode, arrays, known_sizes=True).vm.jit_fn)
        return f.lower(*arrays).compile().memory_analysis().temp_size_in_bytes
    by_torch = (form, mode) == ("gather", "PYTORCH")
    f = compiled_by_torch() if by_torch else compiled(form, mode, arrays)
    for batch in (2, 3):  # the second time PyTorch compiles for any size
        np.asarray(f(o[:batch], W, h[:batch], i[:batch], j[:batch]))
    before = peak()
    np.asarray(f(*arrays))
    return peak() - before


def measure(*job):
    """The same, in words, by a process that has done nothing else."""
    command = [sys.executable, "-W", "ignore", __file__, *job]
    run = subprocess.run(command, capture_output=True, text=True)
    return f"{int(run.stdout) / MIB:.1f} MiB" if run.returncode == 0 else "absent"


def table():
    from report import table

    modes = [mode for mode, package in MODES.items() if package is None or find_spec(package)]
    rows = [
        [mode, *(measure(form, mode, case) for case in CASES for form in FORMS)] for mode in modes
    ]
    return table(["mode", *(f"{case} {form}" for case in CASES for form in FORMS)], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", nargs="*", metavar="FORM MODE CASE", help="one figure, in bytes")
    job = parser.parse_args().job
    print(held(*job) if job else table())
