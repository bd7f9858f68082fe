"""What a type checker finds in a user's program: nothing that is right, and what is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytensor
import pytest
import typing_example

WRONG = """\
import numpy as np
from blocksparse_ops import sparse_block_dot, sparse_block_gemv, sparse_block_outer
from blocksparse_ops.bsr import bsr_from_weights
from blocksparse_ops.pattern import block_counts, pattern_costs
W, h, o = np.ones((3, 2, 4, 5)), np.ones((2, 2, 4)), np.zeros((2, 1, 5))
sparse_block_dot(W, h, [[0, 1]], [[0]])  # wrong: no bias
sparse_block_dot(None, h, [[0, 1]], None, [[0]])  # wrong
sparse_block_dot(W, h, {0, 1}, None, [[0]])  # wrong
sparse_block_dot(W, h, [[0, 1]], None, outputIndex=[[0]])  # wrong
sparse_block_dot(W, h, [[0, 1]], None, [[0]]).no_such_method()  # wrong
sparse_block_gemv(o, W, h, [[0, 1]])  # wrong: an index is missing
sparse_block_outer(W, h, o, [[0, 1]], [[0]], alpha=object())  # wrong
bsr_from_weights(W, None, [0])  # wrong
pattern_costs(4, [0], [0])  # wrong
pattern_costs((3, 2, 4, 5), [0], [0]).share  # wrong
block_counts([0], [0], ("three", "two"))  # wrong
"""


def test_a_program_runs():
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        typing_example.main()


def test_a_checker_finds_what_is_wrong_and_nothing_else(tmp_path):
    pytest.importorskip("mypy")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    program = typing_example.__file__
    command = [sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "cache", program, wrong]
    # From here it finds how the project configures it.
    root = Path(__file__).parents[1]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root)
    found = re.findall(r"^(.*\.py):(\d+): error", run.stdout, re.MULTILINE)
    lines = enumerate(WRONG.splitlines(), start=1)
    expected = {(wrong.name, number) for number, line in lines if "# wrong" in line}
    assert {(Path(name).name, int(line)) for name, line in found} == expected, (
        run.stdout + run.stderr
    )
