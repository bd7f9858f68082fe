"""The benchmark runs, and takes no contender that computes something else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cases import needs_compiler

RUN = Path(__file__).parents[1] / "benchmarks" / "run.py"


@needs_compiler
def test_a_run(tmp_path):
    pytest.importorskip("threadpoolctl")
    pytest.importorskip("matplotlib")
    chosen = "--studies cases --cases T --contenders C NumPy --quantities forward --rounds 1"
    output = tmp_path / "run.json"
    command = [sys.executable, "-W", "ignore", str(RUN), *chosen.split(), "--output", str(output)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (record,) = json.loads(output.read_text())["cases"]
    assert {"C", "NumPy", "product", "read"} == set(record["times"])
    assert (tmp_path / "run_cases.svg").exists()
