"""Threads of the C kernels: switched by PyTensor's own config.openmp, and of no effect on bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytensor
import pytest
from cases import Draw, Sizes, needs_compiler, symbols

from blocksparse_ops import sparse_block_gemv, sparse_block_outer

TASKS = Path("/proc/self/task")

# Panels of output blocks, examples where there are too few panels, and one pattern for all.
PROBLEMS = {
    "panels": Sizes(iBlocks=5, oBlocks=6, iSize=48, oSize=70, iWin=3, oWin=2, batch=60),
    "examples": Sizes(iBlocks=9, oBlocks=1, iSize=90, oSize=30, iWin=5, oWin=1, batch=90),
    "shared": Sizes(iBlocks=1, oBlocks=1, iSize=64, oSize=64, iWin=2, oWin=3, batch=70),
}
BUILD = {"gemv": sparse_block_gemv, "outer": sparse_block_outer}


def compiled(op, openmp):
    arrays = getattr(Draw, op)(Draw(PROBLEMS["panels"], 0, "float32"))
    inputs = list(symbols(arrays).values())
    with pytensor.config.change_flags(openmp=openmp):
        return pytensor.function(inputs, BUILD[op](*inputs), mode="CVM")


def arrays_of(op, problem):
    return getattr(Draw, op)(Draw(PROBLEMS[problem], 0, "float32")).values()


def run_in_child(function, arrays):
    """The exit status of a forked child that calls the function."""
    child = os.fork()
    if child == 0:
        function(*arrays)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def report():
    """What three threads do, seen in a process of its own."""
    off = {op: compiled(op, openmp=False) for op in BUILD}
    on = {op: compiled(op, openmp=True) for op in BUILD}
    calls = [(op, problem) for op in BUILD for problem in PROBLEMS]
    serial = {call: off[call[0]](*arrays_of(*call)) for call in calls}
    counts = {"before": len(list(TASKS.iterdir())) if TASKS.exists() else 1}
    threaded = {call: on[call[0]](*arrays_of(*call)) for call in calls}
    counts["after"] = len(list(TASKS.iterdir())) if TASKS.exists() else 3
    return {
        **counts,
        "same": [bool((serial[call] == threaded[call]).all()) for call in calls],
        "finite": [bool(np.isfinite(value).all()) for value in serial.values()],
        "child": run_in_child(on["gemv"], arrays_of("gemv", "panels")),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(report()))


@pytest.fixture(scope="module")
def three_threads():
    run = subprocess.run(
        [sys.executable, "-W", "ignore", __file__],
        env={**os.environ, "OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@needs_compiler
def test_same_bits_on_any_number_of_threads(three_threads):
    assert all(three_threads["finite"])
    assert all(three_threads["same"])


@needs_compiler
def test_threads_are_started_only_if_switched_on(three_threads):
    assert (three_threads["before"], three_threads["after"]) == (1, 3)


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_after_threads_ran_works_alone(three_threads):
    assert three_threads["child"] == 0
