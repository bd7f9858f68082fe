# ruff: noqa: T201
"""Two PyMC models as they are written, faster by an import: nothing in them names the package.

    python examples/pymc_unchanged.py regressions                # a regression for each group
    python examples/pymc_unchanged.py networks                   # a neural network for each group
    python examples/pymc_unchanged.py networks --without         # the same, without the import

`regressions`: in each of 200 groups four outcomes depend on five covariates, by a matrix of the
group. `networks`: in each of 18 groups the two moons are turned by another angle, and a network of
the group tells them apart; the networks are alike, so that each learns from the others' points.

Prints what a gradient takes and what sampling takes, and some posterior means with the Monte Carlo
error of each. With `--draws 0` it does not sample.
"""

import argparse
import resource
import time

import numpy as np

INSTALL = "This example needs Python 3.12 and: pip install 'blocksparse_ops[examples]'"
try:
    import arviz as az
    import pymc as pm
    import pytensor.tensor as pt
    from sklearn.datasets import make_moons
except ImportError as error:
    raise SystemExit(f"{error}. {INSTALL}") from None


def regressions(rng, rows):
    """y[n] ~ Normal(x[n] @ B[group[n]], noise), B[group] ~ Normal(mu, tau)"""
    groups, covariates, outcomes = 200, 5, 4
    x, group = rng.normal(size=(rows, covariates)), rng.integers(groups, size=rows)
    B = rng.normal(0.5, 0.5, size=(groups, covariates, outcomes))
    y = np.einsum("np,npk->nk", x, B[group]) + rng.normal(size=(rows, outcomes))
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1, shape=(covariates, outcomes))
        tau = pm.HalfNormal("tau", 1, shape=(covariates, outcomes))
        z = pm.Normal("z", shape=(groups, covariates, outcomes))
        B = mu + tau * z
        noise = pm.HalfNormal("noise", 1, shape=outcomes)
        pm.Normal("y", pt.einsum("np,npk->nk", x, B[group]), noise, observed=y)
        pm.Deterministic("typical_mu", mu.mean())
        pm.Deterministic("typical_tau", tau.mean())
    return model, ["typical_mu", "typical_tau", "noise"]


def networks(rng, rows):
    """y[n] ~ Bernoulli(network[group[n]](x[n])), of two layers of five units"""
    groups, units = 18, 5
    x, y = make_moons(rows, noise=0.3, random_state=int(rng.integers(1 << 30)))
    group, angle = rng.integers(groups, size=rows), rng.uniform(-1, 1, groups)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1)
    x = np.einsum("np,npq->nq", x - x.mean(0), turn.reshape(groups, 2, 2)[group])
    with pm.Model() as model:

        def weights(name, *shape):
            mean = pm.Normal(f"{name}_mean", 0, 1, shape=shape)
            spread = pm.HalfNormal(f"{name}_spread", 1, shape=shape)
            return mean + spread * pm.Normal(f"{name}_z", shape=(groups, *shape))

        first, second, last = (
            weights("first", 2, units),
            weights("second", units, units),
            weights("last", units),
        )
        hidden = pt.tanh((x[:, None, :] @ first[group])[:, 0])
        hidden = pt.tanh((hidden[:, None, :] @ second[group])[:, 0])
        logit = pm.Deterministic("logit", (hidden * last[group]).sum(1))
        pm.Bernoulli("y", logit_p=logit, observed=y)
        pm.Deterministic("right", pt.mean(pt.eq(logit > 0, y)))
        pm.Deterministic("confidence", pt.mean(abs(logit)))
    return model, ["right", "confidence"]


MODELS = {"regressions": regressions, "networks": networks}


def peak():
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_gradient(model, calls=50):
    """The seconds of the log-density and its gradient, and by how many MiB the peak grows."""
    function = model.logp_dlogp_function(ravel_inputs=True)
    point = np.concatenate([np.ravel(value) for value in model.initial_point().values()])
    point = np.random.default_rng(0).normal(point, 0.1)
    before, seconds = peak(), []
    for _ in range(calls):
        start = time.perf_counter()
        function(point)
        seconds.append(time.perf_counter() - start)
    return min(seconds), peak() - before


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", choices=MODELS)
    add("--without", action="store_true", help="do not import blocksparse_ops")
    for name, default in {"rows": 5000, "tune": 300, "draws": 300, "chains": 1, "seed": 0}.items():
        add(f"--{name}", type=int, default=default, help="(%(default)s)")
    options = parser.parse_args(argv)
    if not options.without:
        import blocksparse_ops  # noqa: F401
    model, names = MODELS[options.model](np.random.default_rng(options.seed), options.rows)
    seconds, mebibytes = measure_gradient(model)
    print(f"a gradient: {1e6 * seconds:,.0f} us, {mebibytes:.0f} MiB", flush=True)
    if not options.draws:
        return None
    sizes = {name: getattr(options, name) for name in ("tune", "draws", "chains")}
    start = time.perf_counter()
    trace = pm.sample(model=model, cores=1, random_seed=options.seed, progressbar=False, **sizes)
    print(f"sampling: {time.perf_counter() - start:.0f} s")
    for name in names:
        draws = trace.posterior[name]
        means, errors = np.ravel(draws.mean(("chain", "draw"))), np.ravel(az.mcse(draws))
        for mean, error in zip(means, errors, strict=True):
            print(f"{name:12} {mean:.4f}, Monte Carlo error {error:.4f}")
    return trace


if __name__ == "__main__":
    main()
