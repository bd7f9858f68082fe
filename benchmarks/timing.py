"""Interleaved rounds: what is compared is timed within the same milliseconds."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

SLOT_SECONDS = 2e-3
WARMING_SECONDS = 10e-3
LONGEST_SLOT_SECONDS = 20e-3
SLOW_CONTENDER_SECONDS = 1.0
FEWEST_ROUNDS = 3
MOST_CALLS = 100


@dataclass
class Call:
    """One call of a contender, and how to see what it computed."""

    run: Callable[[], object]
    values: Callable[[object], list] = field(default=lambda result: [result])


def seconds(run, calls=1):
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def rounds_of(runs, rounds, every_round=(), slot_seconds=SLOT_SECONDS, pause=0.0):
    """Seconds a call of each of `runs`, one entry a round.

    Each round runs all of them in a new order. All that are short are called equally often in a
    row, after some calls that are not timed: what is timed is a loop of calls with warm caches.

    Parameters
    ----------
    runs : dict of callables
    rounds : int
        A run that takes long takes part in the first few only.
    every_round : names
        Runs that take part in all rounds however long they take.
    slot_seconds : float
        A slot calls the shortest run until about so much time has passed.
    pause : float
        Seconds to sleep before each slot: threads that wait by spinning stop.
    """
    single = {name: min(seconds(run) for _ in range(2)) for name, run in runs.items()}
    calls = max(1, round(slot_seconds / min(single.values())))
    longest = max(LONGEST_SLOT_SECONDS, slot_seconds)
    rng = np.random.default_rng(0)
    taken = {name: [] for name in runs}
    gc.disable()
    for turn in range(rounds):
        for name in rng.permutation(list(runs)).tolist():
            slow = single[name] * turn > SLOW_CONTENDER_SECONDS
            if slow and turn >= FEWEST_ROUNDS and name not in every_round:
                continue
            time.sleep(pause)
            own_calls = max(1, min(calls, int(longest / single[name])))
            if single[name] < longest:
                seconds(runs[name], max(1, round(WARMING_SECONDS / single[name])))
            taken[name].append(seconds(runs[name], own_calls))
    gc.enable()
    return taken


def least_of(runs, seconds_in_all, slot_seconds=SLOT_SECONDS):
    """The least seconds a call of each of `runs`, which take turns of some calls in a row each."""
    least = dict.fromkeys(runs, np.inf)
    stop = time.perf_counter() + seconds_in_all
    turn = 0
    gc.disable()
    while turn < FEWEST_ROUNDS or time.perf_counter() < stop:
        for name, run in runs.items():
            calls = 2 if turn == 0 else max(2, min(MOST_CALLS, int(slot_seconds / least[name])))
            least[name] = min(least[name], *(seconds(run) for _ in range(calls)))
        turn += 1
    gc.enable()
    return least


def summary(series):
    """The median and the quartiles."""
    low, median, high = np.quantile(series, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "quartiles": [low, high]}


def ratio(series, other):
    """The summary of the quotient, round by round: what slows a round slows both."""
    rounds = min(len(series), len(other))
    return summary(np.divide(series[:rounds], other[:rounds]))
