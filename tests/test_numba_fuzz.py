"""Some random problems for the Numba kernels between guard pages, in a process of their own."""

import subprocess
import sys

import numba_fuzz
import numpy as np
import pytest
from guarded import Region

FUZZ = [sys.executable, numba_fuzz.__file__]


def test_random_problems():
    run = subprocess.run([*FUZZ, "--problems", "400"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "400 problems" in run.stdout


def test_a_failure_prints_the_command_that_repeats_it(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", [numba_fuzz.__file__, "--problems", "3", "--threads", "x"])
    with pytest.raises(SystemExit):
        numba_fuzz.main()
    assert "invalid int value" in capfd.readouterr().err


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
