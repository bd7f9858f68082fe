"""Threads: switched by PyTensor's own config.openmp, and of no effect on bits."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytensor
import pytest
from cases import Draw, Sizes, needs_compiler, symbols

from blocksparse_ops import SparseBlockGemv, sparse_block_gemv, sparse_block_outer
from blocksparse_ops.gradient import SparseBlockGradient

TASKS = Path("/proc/self/task")

# Panels of output blocks, examples where there are too few panels, one pattern for all, and small
# blocks, as the examples stand.
PROBLEMS = {
    "panels": Sizes(iBlocks=5, oBlocks=6, iSize=48, oSize=70, iWin=3, oWin=2, batch=60),
    "examples": Sizes(iBlocks=9, oBlocks=1, iSize=90, oSize=30, iWin=5, oWin=1, batch=90),
    "shared": Sizes(iBlocks=1, oBlocks=1, iSize=64, oSize=64, iWin=2, oWin=3, batch=70),
    "direct": Sizes(iBlocks=40, oBlocks=3, iSize=16, oSize=16, iWin=2, oWin=3, batch=700),
}
# The graph of each op, what draws its arguments, and what pads its indices.
BUILD = {
    "gemv": (sparse_block_gemv, Draw.gemv, None),
    "outer": (sparse_block_outer, Draw.outer, None),
    "gradient": (lambda *inputs: SparseBlockGradient()(*inputs)[2], Draw.outer, None),
    "padded": (SparseBlockGemv(padding_idx=-1), Draw.gemv, -1),
}

# A mode, and the layer that runs its threads.
BACKENDS = [
    pytest.param(("CVM", "omp"), marks=needs_compiler),
    ("NUMBA", "omp"),
    ("NUMBA", "workqueue"),
]


def compiled(mode, op, openmp):
    build, *_ = BUILD[op]
    inputs = list(symbols(drawn(op, "panels")).values())
    with pytensor.config.change_flags(openmp=openmp):
        return pytensor.function(inputs, build(*inputs), mode=mode, trust_input=True)


def drawn(op, problem):
    _, draw, padding_idx = BUILD[op]
    return draw(Draw(PROBLEMS[problem], 0, "float32", padding_idx=padding_idx))


def arrays_of(op, problem):
    return drawn(op, problem).values()


def run_in_child(function, arrays):
    """The exit status of a forked child that calls the function."""
    child = os.fork()
    if child == 0:
        function(*arrays)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def are_same_side_by_side(functions, serial, rounds):
    """Whether each of eight threads of Python gets what one gets, of all calls in turn.

    Each has its own memory of a function: PyTensor's is one call's at a time.
    """
    arrays = {call: list(arrays_of(*call)) for call in serial}

    def are_same(own):
        return all(
            own[op](*arrays[op, problem]).tobytes() == result.tobytes()
            for _ in range(rounds)
            for (op, problem), result in serial.items()
        )

    copies = [
        {op: function.copy(share_memory=False) for op, function in functions.items()}
        for _ in range(8)
    ]
    with ThreadPoolExecutor(8) as pool:
        return all(pool.map(are_same, copies))


def count_threads(otherwise):
    return len(list(TASKS.iterdir())) if TASKS.exists() else otherwise


def report(mode, rounds):
    """What three threads do, seen in a process of its own."""
    off = {op: compiled(mode, op, openmp=False) for op in BUILD}
    calls = [(op, problem) for op in BUILD for problem in PROBLEMS]
    serial = {call: off[call[0]](*arrays_of(*call)) for call in calls}
    counts = {"before": count_threads(1)}
    on = {op: compiled(mode, op, openmp=True) for op in BUILD}
    threaded, counts["after"] = {}, 0
    for call in calls:
        threaded[call] = on[call[0]](*arrays_of(*call))
        # GNU OpenMP ends the threads that a smaller call has no use for.
        counts["after"] = max(counts["after"], count_threads(3))
    call = ("gemv", "panels")
    return {
        **counts,
        "same": [serial[call].tobytes() == threaded[call].tobytes() for call in calls],
        # What is padded is as it was drawn.
        "finite": [
            bool(np.isfinite(value).all()) for (op, _), value in serial.items() if op != "padded"
        ],
        "side_by_side": are_same_side_by_side(on, serial, rounds),
        "child": run_in_child(on["gemv"], arrays_of(*call)),
    }


if __name__ == "__main__":
    import lighter  # noqa: F401

    mode, rounds = sys.argv[1:]
    sys.stdout.write(json.dumps(report(mode, int(rounds))))


@pytest.fixture(scope="module", params=BACKENDS, ids="-".join)
def three_threads(request):
    mode, layer = request.param
    run = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, mode, "3"],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "3",
            "NUMBA_NUM_THREADS": "3",
            "NUMBA_THREADING_LAYER": layer,
            "OPENBLAS_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_same_bits_on_any_number_of_threads(three_threads):
    assert all(three_threads["finite"])
    assert all(three_threads["same"])


def test_threads_are_started_only_if_switched_on(three_threads):
    assert three_threads["before"] == 1
    assert three_threads["after"] >= 3


def test_callers_on_threads_of_their_own(three_threads):
    assert three_threads["side_by_side"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_after_threads_ran_works_alone(three_threads):
    assert three_threads["child"] == 0
