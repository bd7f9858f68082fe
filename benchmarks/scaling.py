"""What a second thread brings, beside what it brings to a large matrix product."""

import numpy as np
from contenders import OURS
from limits import Product
from ours import Ours
from problems import CASES, Problem
from studies import KERNEL_QUANTITIES, note
from timing import ratio, rounds_of

# OpenMP's and OpenBLAS's threads wait for more work by spinning, for so long at most.
PAUSE_SECONDS = 0.05


def scaling_study(options):
    """Times on one thread over times on all, of the ops and of the product."""
    for case, dtype in options.problems:
        problem = Problem(case, CASES[case], dtype)
        for quantity in [q for q in KERNEL_QUANTITIES if q in options.quantities]:
            for name in [name for name in options.contenders if name in OURS]:
                note(f"{options.threads} threads, {case}, {quantity}, {name}")
                yield measure(problem, quantity, name, options)


def measure(problem, quantity, name, options):
    calls = [getattr(Ours(OURS[name], openmp), quantity)(problem) for openmp in (False, True)]
    one, all_ = ([np.array(v) for v in call.values(call.run())] for call in calls)
    for a, b in zip(one, all_, strict=True):
        np.testing.assert_array_equal(a, b, "the bits depend on the threads")
    runs = {
        "one": calls[0].run,
        "all": calls[1].run,
        "product, one": Product(problem.dtype, options.product),
        "product, all": Product(problem.dtype, options.product, options.threads),
    }
    times = rounds_of(runs, options.rounds, every_round=runs, pause=PAUSE_SECONDS)
    own = np.divide(times["one"], times["all"])
    product = np.divide(times["product, one"], times["product, all"])
    return {
        "case": problem.name,
        "dtype": problem.dtype.name,
        "quantity": quantity,
        "contender": name,
        "scaling": ratio(times["one"], times["all"]),
        "product": ratio(times["product, one"], times["product, all"]),
        "relative": ratio(own, product),
        "times": times,
    }
