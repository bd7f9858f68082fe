"""The benchmark runs, and takes no contender that computes something else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cases import needs_compiler

RUN = Path(__file__).parents[1] / "benchmarks" / "run.py"


CONTENDERS = ["C", "NumPy", "ours JAX", "ours PyTorch"]
QUANTITIES = ["forward"]


@needs_compiler
def test_a_run(tmp_path):
    pytest.importorskip("threadpoolctl")
    pytest.importorskip("matplotlib")
    output = tmp_path / "run.json"
    options = ["--studies", "cases", "--cases", "T", "--rounds", "1"]
    options += ["--contenders", *CONTENDERS, "--quantities", *QUANTITIES, "--output", str(output)]
    command = [sys.executable, "-W", "ignore", str(RUN), *options]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results = json.loads(output.read_text())
    installed = {name for name in CONTENDERS if name not in results["absent"]}
    assert [record["quantity"] for record in results["cases"]] == QUANTITIES
    for record in results["cases"]:
        assert {*installed, "product", "read"} == set(record["times"])
    assert (tmp_path / "run_cases.svg").exists()
