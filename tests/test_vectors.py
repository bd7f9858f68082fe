"""The Numba kernels with the vectors of other processors, and without any.

Those of this processor, of 512 bits where it has them, run in all other tests.
"""

import os
import platform
import subprocess
import sys

import numpy as np
import oracle
import pytest
from cases import BLOCK_SIZES, DEPTHS, Draw, Sizes
from test_values import CONTIGUOUS, PROBLEMS, compiled

# What Numba is told to compile for: the bytes of a vector, its features, and a dtype.
WIDTHS = {
    "256 bits": (32, "+avx2,+avx,+fma,+sse2", "float32"),
    "128 bits": (16, "+sse2", "float64"),
    "none": (4, "", "float32"),
}

DRAWS = 60


def draw_sizes(rng):
    columns, depth = rng.choice(BLOCK_SIZES), rng.choice(DEPTHS)
    blocks, windows = rng.choice([1, 3, 6], 2), rng.choice(5, 2)
    return Sizes(*blocks, depth, columns, *windows, rng.choice([0, 1, 5, 30]))


def check_random_problems(dtype):
    rng = np.random.default_rng(0)
    for seed in range(DRAWS):
        drawn = draw_sizes(rng)
        for problem in ("gemv", "gemv_transposed", "outer"):
            _, draw, enter, expect = PROBLEMS[problem]
            arrays = draw(Draw(drawn, seed, dtype)).values()
            actual = compiled("NUMBA", problem, CONTIGUOUS, dtype)(*enter(*arrays))
            oracle.assert_within_bound(actual, expect(*arrays))


if __name__ == "__main__":
    import lighter  # noqa: F401

    from blocksparse_ops.kernels.numba.vector import VECTOR_BYTES

    size, _, dtype = WIDTHS[sys.argv[1]]
    assert size == VECTOR_BYTES
    check_random_problems(dtype)


@pytest.mark.campaign
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86 features")
@pytest.mark.parametrize("width", WIDTHS)
def test_random_problems(width):
    run = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, width],
        env={**os.environ, "NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": WIDTHS[width][1]},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
