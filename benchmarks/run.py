# ruff: noqa: T201
"""Measure the ops against what the machine allows, and against other ways to compute the same.

    python benchmarks/run.py --quick                     # under a minute
    python benchmarks/run.py                             # everything, on one thread
    python benchmarks/run.py --threads 2                 # what a second thread brings
    python benchmarks/run.py --studies cases --cases M --contenders C Torch --quantities forward

Tables go to stdout, every figure to a JSON file, and a chart of it beside it.
"""

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace

QUANTITIES = ("forward", "gradient_in_h", "outer_in_place", "outer_into_zeros", "training_step")
SMALL = ("16x1", "8x8", "1x16")
CASES = ("T", "M", "L", "X", "S", "E", "full", "shared", "between", *SMALL)
STUDIES = ("cases", "odd", "sweep", "overhead", "large", "scaling")
RESULTS = Path(__file__).parent / "results"

# float64 where the products bound the time, and where a block is large.
FULL = SimpleNamespace(
    problems=[
        *((case, "float32") for case in CASES[1:]),
        *((case, "float64") for case in ("L", "E", "between", *SMALL)),
    ],
    quantities=QUANTITIES,
    contenders=None,
    studies=("cases", "odd", "sweep", "overhead", "large"),
    rounds=15,
    product=2048,  # the side of the matrices that give the rate of multiply-adds
    longest_call=3.0,  # seconds; what takes longer takes no part
)
QUICK = SimpleNamespace(
    problems=[(case, "float32") for case in "MLXSE"],
    quantities=("forward", "gradient_in_h", "outer_in_place"),
    contenders=("C", "Numba", "NumPy"),
    studies=("cases",),
    rounds=3,
    product=1024,
    longest_call=0.5,
)


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer cases, contenders and rounds")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, help="which tables")
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="CASE", help=" ".join(CASES))
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="of the cases chosen")
    parser.add_argument("--quantities", nargs="+", choices=QUANTITIES)
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="C Numba NumPy ...")
    parser.add_argument("--rounds", type=int, help="how often each contender has its turn")
    parser.add_argument("--threads", type=int, default=1, help="more than one: their scaling")
    parser.add_argument("--output", type=Path, help="the JSON file")
    return parser.parse_args()


def options_of(args):
    """What to measure: the chosen preset, and what was chosen besides."""
    options = SimpleNamespace(**vars(QUICK if args.quick else FULL), threads=args.threads)
    if args.threads > 1:
        options.studies = ("scaling",)
        options.contenders = ("C",)
        options.problems = [("L", "float32"), ("E", "float32")]
    if args.cases:
        options.problems = [(case, dtype) for dtype in args.dtypes for case in args.cases]
    for name in ("studies", "quantities", "contenders", "rounds"):
        if getattr(args, name):
            setattr(options, name, getattr(args, name))
    kind = "quick" if args.quick else "full" if args.threads == 1 else f"threads{args.threads}"
    options.output = args.output or RESULTS / f"{kind}.json"
    options.output = options.output.resolve()
    return options


def hold_threads(threads):
    """Give every library so many threads: each reads this when it is first imported."""
    for library in ("OPENBLAS", "MKL", "OMP", "NUMBA"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    os.environ["NPROC"] = "1"  # how JAX sizes its pool


def main():
    options = options_of(parse())
    hold_threads(options.threads)

    import chart
    import contenders
    import machine
    import report
    from large import large_study
    from overhead import overhead_study
    from scaling import scaling_study
    from studies import case_study, odd_study, sweep_study

    run = {
        "cases": case_study,
        "odd": odd_study,
        "sweep": sweep_study,
        "overhead": overhead_study,
        "large": large_study,
        "scaling": scaling_study,
    }
    absent = contenders.choose(options)
    results = {"settings": vars(options) | {"output": options.output.name}, "absent": absent}
    results |= machine.describe()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for study in options.studies:
        results[study] = list(run[study](options))
        print(report.tables(study, results), flush=True)
        options.output.write_text(json.dumps(results) + "\n")
    print(f"{options.output}", *chart.draw(results, options.output), sep="\n")


if __name__ == "__main__":
    main()
