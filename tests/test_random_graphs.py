"""Some random training graphs, each of which has its time and memory."""

import subprocess
import sys

import pytest
import random_graphs


def test_random_graphs(in_campaign):
    """Not from seed 0 on: PyTensor 3.0 closes a circle in graph 30, and goes round it for 10 s."""
    cases = in_campaign("8", "40")
    command = [sys.executable, random_graphs.__file__, "--seconds", "300"]
    command += ["--seed", "31", "--cases", cases]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{cases} graphs, 0 failures" in run.stdout


def fail(seed, mode):
    if seed == 7 or (seed == 8 and mode is not random_graphs.PYTENSORS):
        raise AssertionError("values differ")


def test_a_failure_prints_the_command_that_repeats_it(monkeypatch, capsys):
    """Unless PyTensor's rewrites alone fail, too."""
    monkeypatch.setattr(random_graphs, "compare", fail)
    monkeypatch.setattr(sys, "argv", ["random_graphs.py", "--cases", "3", "--seed", "7"])
    monkeypatch.setattr(random_graphs.resource, "setrlimit", lambda *limits: None)
    with pytest.raises(SystemExit, match="True"):
        random_graphs.main()
    shown = capsys.readouterr().out
    assert "values differ" in shown
    assert "failed: python tests/random_graphs.py --cases 1 --seed 8" in shown
    assert "3 graphs, 1 failures: [8]" in shown
