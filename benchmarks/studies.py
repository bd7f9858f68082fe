"""What is measured: each study yields records, one for each table row."""

import sys
from dataclasses import asdict, replace

import numpy as np
from contenders import OURS, Contender
from limits import Product, limit, limit_runs
from problems import CASES, ODD_SIZES, Problem
from timing import ratio, rounds_of, seconds, summary

LARGEST_GATHER_BYTES = 4 * 2**30
SWEEP_PEER = "NumPy"
KERNEL_QUANTITIES = ("forward", "gradient_in_h", "outer_in_place")


def note(text):
    sys.stderr.write(f"{text}\n")


def checked_call(contender, problem, quantity):
    call = contender.call(problem, quantity)
    problem.check(contender.name, quantity, call.values(call.run()))
    return call


def admitted(contender, problem, quantity, longest_call):
    """The contender's call, or why it takes no part."""
    needed = contender.gathered_bytes(problem, quantity)
    if needed > LARGEST_GATHER_BYTES:
        return None, f"needs {needed / 2**30:.1f} GiB"
    call = checked_call(contender, problem, quantity)
    took = seconds(call.run)
    if took > longest_call:
        return None, f"takes {took:.1f} s"
    return call, None


def measure(problem, quantity, contenders, product, options):
    """The record of one quantity of one problem."""
    runs, skipped = {}, {}
    for contender in contenders:
        if contender.does(problem, quantity):
            call, why = admitted(contender, problem, quantity, options.longest_call)
            if call is None:
                skipped[contender.name] = why
            else:
                runs[contender.name] = call.run
    limits = limit_runs(problem, quantity, product)
    if quantity == "outer_into_zeros":
        for contender in contenders:
            if contender.name in OURS:
                call = contender.call(problem, "outer_in_place")
                limits[f"{contender.name}, outer in place"] = call.run
    times = rounds_of(runs | limits, options.rounds, every_round=limits)
    multiply_adds, count = problem.work(quantity)
    bound, series = limit(times, multiply_adds, product)
    return {
        "case": problem.name,
        "dtype": problem.dtype.name,
        "quantity": quantity,
        "sizes": asdict(problem.sizes),
        "reuse": problem.triples / problem.used_blocks(),
        "multiply_adds": multiply_adds,
        "bytes": count,
        "bound": bound,
        "limit": {**summary(series), "rounds": series.tolist()},
        "times": {
            name: {**summary(taken), "times_the_limit": ratio(taken, series), "rounds": taken}
            for name, taken in times.items()
        },
        "skipped": skipped,
    }


def case_study(options):
    """Every chosen quantity of every chosen case."""
    contenders = [Contender(name) for name in options.contenders]
    for name, dtype in options.problems:
        note(f"{name}, {dtype}")
        problem = Problem(name, CASES[name], dtype)
        product = Product(dtype, options.product)
        for quantity in options.quantities:
            yield measure(problem, quantity, contenders, product, options)


def odd_study(options):
    """Blocks whose size is no multiple of a vector, beside those of the case L."""
    sizes = CASES["L"]
    problems = {
        size: Problem(f"L{size}", replace(sizes, iSize=size, oSize=size), "float32")
        for size in ODD_SIZES
    }
    for quantity in [q for q in KERNEL_QUANTITIES if q in options.quantities]:
        for name in [name for name in options.contenders if name in OURS]:
            note(f"odd sizes, {quantity}, {name}")
            runs = {
                size: checked_call(Contender(name), problem, quantity).run
                for size, problem in problems.items()
            }
            times = rounds_of(runs, options.rounds, every_round=runs)
            rates = {
                size: problems[size].work(quantity)[0] / np.array(taken)
                for size, taken in times.items()
            }
            yield {
                "quantity": quantity,
                "contender": name,
                "rates": {size: summary(2e-9 * rate) for size, rate in rates.items()},
                "relative": {size: ratio(rate, rates[64]) for size, rate in rates.items()},
            }


def sweep_study(options):
    """One size varied at a time, the others those of the case M."""
    sizes = replace(CASES["M"], iBlocks=32, oBlocks=32)
    sweeps = {
        "reuse": [replace(sizes, iBlocks=n, oBlocks=n) for n in (256, 128, 64, 45, 32, 23, 16, 11)],
        "block size": [replace(sizes, iSize=n, oSize=n) for n in (8, 16, 32, 64, 128, 256)],
        "batch": [replace(sizes, batch=n) for n in (1, 4, 16, 64, 256, 1024)],
    }
    contenders = [Contender(name) for name in (*OURS, SWEEP_PEER)]
    contenders = [c for c in contenders if c.name in options.contenders]
    product = Product("float32", options.product)
    for axis, steps in sweeps.items():
        for step in steps:
            problem = Problem(f"{axis} {step}", step, "float32")
            values = {
                "reuse": problem.triples / problem.used_blocks(),
                "block size": step.iSize,
                "batch": step.batch,
            }
            note(f"sweep, {axis} {values[axis]:.3g}")
            for quantity in [q for q in KERNEL_QUANTITIES if q in options.quantities]:
                record = measure(problem, quantity, contenders, product, options)
                yield {"axis": axis, "value": values[axis], **record}
