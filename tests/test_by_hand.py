"""The benchmark against forms by hand runs, and all of them compute the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "by_hand.py"
# Blocks with one row and one column, and without; 1 GiB of weights is not there.
SIZES = ["--groups", "3", "1000000000", "--inputs", "1", "2", "--outputs", "1", "--examples", "7"]


def records_of(tmp_path, *more):
    """What a run writes, and what it prints."""
    pytest.importorskip("threadpoolctl")
    pytest.importorskip("matplotlib")
    output = tmp_path / "by_hand.json"
    options = ["--modes", "FAST_COMPILE", "--dtypes", "float64", "--indices", "unknown", *SIZES]
    options += ["--seconds", "0", "--output", str(output), *more]
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *options]
    # An einsum compiles its own graph in the default mode, whatever the mode of the function.
    flags = ",".join([os.environ.get("PYTENSOR_FLAGS", ""), "mode=FAST_COMPILE"])
    environment = {**os.environ, "PYTENSOR_FLAGS": flags}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(output.read_text())["by_hand"], run.stdout


def test_a_run(tmp_path):
    records, printed = records_of(tmp_path)
    # Two windows, quantities and sizes of blocks.
    assert len(records) == 2**3
    for record in records:
        special = {"rows", "scaled rows", "numbers"} if record["iSize"] == 1 else {"rows"}
        assert set(record["times"]) == {"ours", "product", "matmul", "einsum"} | special
    assert (tmp_path / "by_hand_1.svg").exists()
    assert "FAST_COMPILE: 8 cells" in printed


def test_a_run_of_what_is_recognised(tmp_path):
    records, printed = records_of(tmp_path, "--recognised", "--windows", "1")
    # Two quantities of blocks for which there are six forms, and of such for which there are four.
    assert len(records) == 2 * 6 + 2 * 4
    assert all(len(record["times"]) == 2 for record in records)
    assert "FAST_COMPILE: 20 cells" in printed
