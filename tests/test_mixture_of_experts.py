"""The example of a mixture of experts, run in small."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

# Next to nothing is compiled in this mode.
MODE = "FAST_COMPILE"
SMALL = ["--mode", MODE, "--steps", "60", "--hidden", "16", "--experts", "4"]


@pytest.fixture
def example():
    # Not when tests are collected, by each process: it takes seconds to import.
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    path = Path(__file__).parent.parent / "examples" / "mixture_of_experts.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("form", [[], ["--dense"]], ids=["sparse", "dense"])
def test_experts_learn(example, tmp_path, capsys, form):
    plot = tmp_path / "routes.png"
    counts, accuracy = example.main([*SMALL, *form, "--plot", str(plot)])
    assert accuracy > 0.7
    assert plot.read_bytes().startswith(b"\x89PNG")

    held_out = math.ceil(1797 / 4)
    assert counts.shape == (4, 10)
    assert counts.sum() == 2 * held_out
    assert counts.sum(axis=1).min() > 0
    weights = 64 * 16 + 16 + 16 * 10
    all_of_them, used = 64 * 4 + 4 * weights + 10, 64 * 4 + 2 * weights + 10
    assert f"{all_of_them:,}, of which {used:,} bear on an image" in capsys.readouterr().out


def test_both_forms_are_one_model(example):
    x, held_out, y, _ = example.load_images(0)
    updated, answers = [], []
    for dense in (False, True):
        parameters = example.draw_parameters(4, 16, np.random.default_rng(0))
        step, answer = example.build_model(parameters, 2, dense, MODE)
        losses = [step(x[:64], y[:64], np.float32(0.3)) for _ in range(3)]
        updated.append([losses, *(p.get_value() for p in parameters)])
        answers.append(answer(held_out))
    for sparse, dense in zip(*updated, strict=True):
        np.testing.assert_allclose(sparse, dense, rtol=1e-4, atol=1e-5)
    (_, chosen, gate), (_, chosen_by_dense, gate_of_dense) = answers
    np.testing.assert_array_equal(chosen, chosen_by_dense)
    np.testing.assert_allclose(gate, gate_of_dense, rtol=1e-4)
    np.testing.assert_allclose(gate.sum(axis=1), 1, rtol=1e-5)
