"""A PyMC model with block-sparse coefficients, sampled in JAX."""

import numpy as np
import pytensor
import pytest
from cases import Draw, Sizes

from blocksparse_ops import reference, sparse_block_dot

# PyMC changes how PyTensor compiles C, for the tests of other files too.
FLAGS = pytensor.config.gcc__cxxflags
pymc = pytest.importorskip("pymc")
pytensor.config.gcc__cxxflags = FLAGS
pytest.importorskip("numpyro")

# An observation is a pair of values, each the sum of two blocks' share.
SIZES = Sizes(iBlocks=2, oBlocks=3, iSize=2, oSize=2, iWin=2, oWin=1, batch=80)
NOISE = 0.1


# Vectorized, JAX maps the ops over the chains.
@pytest.mark.parametrize(("chain_method", "chains"), [("sequential", 1), ("vectorized", 2)])
def test_the_posterior_recovers_the_parameters(chain_method, chains):
    W, h, inputIdx, b, outputIdx = Draw(SIZES, 0, "float64").dot().values()
    noise = NOISE * np.random.default_rng(1).normal(size=(SIZES.batch, SIZES.oWin, SIZES.oSize))
    observed = reference.gemv(b[outputIdx], W, h, inputIdx, outputIdx) + noise
    with pymc.Model():
        coefficients = pymc.Normal("W", 0, 2, shape=W.shape)
        bias = pymc.Normal("b", 0, 2, shape=b.shape)
        mean = sparse_block_dot(coefficients, h, inputIdx, bias, outputIdx)
        pymc.Normal("y", mean, pymc.HalfNormal("noise", 1), observed=observed)
        sampled = pymc.sample(
            nuts_sampler="numpyro",
            nuts={"chain_method": chain_method},
            chains=chains,
            tune=100,
            draws=100,
            random_seed=0,
            progressbar=False,
            compute_convergence_checks=False,
        )
    for name, truth in {"W": W, "b": b, "noise": NOISE}.items():
        draws = sampled.posterior[name].to_numpy()
        error = np.abs(draws.mean((0, 1)) - truth)
        assert (error < 4 * draws.std((0, 1))).all()
        assert (error < 0.1).all()
