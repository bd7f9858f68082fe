"""Some random problems for the Numba kernels between guard pages, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from guarded import Region

FUZZ = Path(__file__).with_name("numba_fuzz.py")


def fuzz(problems, *arguments):
    command = [sys.executable, str(FUZZ), "--problems", problems, "--seconds", "600", *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{problems} problems" in run.stdout
    return run.stdout


def test_random_problems(in_campaign):
    fuzz(in_campaign("100", "400"))


def test_an_allocation_that_fails_leaves_nothing_written(in_campaign):
    pytest.importorskip("_testcapi")
    assert "allocations failed" in fuzz(in_campaign("25", "100"), "--fail-allocations")


def test_a_failure_prints_the_command_that_repeats_it(tmp_path):
    """Of a kernel that never returns, but ends the process."""
    (tmp_path / "numba_problem.py").write_text("import os\nRECORDS = {}\n\n\nos.abort()\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    environment["PYTHONPATH"] += os.pathsep + str(FUZZ.parent)
    command = [sys.executable, str(FUZZ), "--problems", "3", "--seed", "7"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 1
    assert "failed: python tests/numba_fuzz.py --problems 1 --seed" in run.stdout


@pytest.mark.parametrize("at_end", [False, True])
def test_what_is_written_beside_an_array_is_seen(at_end):
    region = Region(1000)
    array = region.hold(np.arange(6.0).reshape(2, 3), (48, 16), at_end)
    assert region.is_unchanged()
    array[1, 2] = 7
    assert region.is_unchanged(but_elements=True)
    assert not region.is_unchanged()
    place = array.__array_interface__["data"][0] - region.memory.ctypes.data + 8
    region.memory[place] = 1  # between two elements
    assert not region.is_unchanged(but_elements=True)
