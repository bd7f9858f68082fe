"""Some random training graphs, each of which has its time and memory."""

import subprocess
import sys

import pytest
import random_graphs


def test_random_graphs():
    command = [sys.executable, random_graphs.__file__, "--seconds", "300", "--cases", "40"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "40 graphs, 0 failures" in run.stdout


def test_a_failure_prints_the_command_that_repeats_it(monkeypatch, capsys):
    monkeypatch.setattr(random_graphs, "compare", lambda seed: 1 / (seed - 8))
    monkeypatch.setattr(sys, "argv", ["random_graphs.py", "--cases", "3", "--seed", "7"])
    monkeypatch.setattr(random_graphs.resource, "setrlimit", lambda *limits: None)
    with pytest.raises(SystemExit, match="True"):
        random_graphs.main()
    shown = capsys.readouterr().out
    assert "failed: python tests/random_graphs.py --cases 1 --seed 8" in shown
    assert "3 graphs, 1 failures: [8]" in shown
