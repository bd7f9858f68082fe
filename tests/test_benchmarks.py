"""The benchmark runs, and takes no contender that computes something else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cases import needs_compiler

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

CONTENDERS = ["C", "NumPy", "ours JAX", "ours PyTorch"]
QUANTITIES = ["forward"]


@needs_compiler
def test_a_run(tmp_path):
    pytest.importorskip("threadpoolctl")
    pytest.importorskip("matplotlib")
    output = tmp_path / "run.json"
    options = ["--studies", "cases", "--cases", "T", "--rounds", "1"]
    options += ["--contenders", *CONTENDERS, "--quantities", *QUANTITIES, "--output", str(output)]
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / "run.py"), *options]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results = json.loads(output.read_text())
    installed = {name for name in CONTENDERS if name not in results["absent"]}
    assert [record["quantity"] for record in results["cases"]] == QUANTITIES
    for record in results["cases"]:
        assert {*installed, "product", "read", "scattered read"} == set(record["times"])
    assert (tmp_path / "run_cases.svg").exists()


@needs_compiler
def test_what_a_product_holds():
    script = str(BENCHMARKS / "peak_memory.py")
    command = [sys.executable, "-W", "ignore", script, "ours", "CVM", "M"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    gathered = 128 * 8 * 8 * 32 * 32 * 4
    assert 0 <= int(run.stdout) < gathered / 4
