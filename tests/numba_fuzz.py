# ruff: noqa: T201
"""Random problems for the Numba kernels, in memory that begins or ends at a guard page.

`python tests/numba_fuzz.py --seconds 600 --threads 4` goes on for that long, and stops at a failure
with the command that repeats it, even where that ends the process. At the end it prints, for each
path, how many problems took it, the largest error as a share of its bound, and how many results
were zero. Without --threads a call runs on one thread and kernels come from PyTensor's cache; with
it all are compiled anew, since any call, however small, is then shared among threads. With
--fail-allocations each allocation of a call fails in turn.
"""

import argparse
import mmap
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from guarded import Region
from numba.core.runtime import _nrt_python

SEED_BYTES = 8
# What the largest array takes, with gaps.
REGION_BYTES = 128 << 20


def fuzz(arguments, current):
    """Check one problem after the other; `current` tells another process which one it is."""
    from blocksparse_ops.kernels import thresholds

    if arguments.threads > 1:
        thresholds.PRODUCTS_OF_A_THREAD = 1
    # Only now, for kernels are compiled with what thresholds are when they are imported.
    from numba_problem import RECORDS, Problem

    from blocksparse_ops.kernels.numba.threads import start_threads

    if arguments.fail_allocations:
        _nrt_python.memsys_use_cpython_allocator()
    if arguments.threads > 1:
        start_threads()
    regions = [Region(REGION_BYTES) for _ in range(5)]
    end, seed = time.monotonic() + arguments.seconds, arguments.seed
    while time.monotonic() < end and seed - arguments.seed < arguments.problems:
        current[:] = seed.to_bytes(8, "little")
        problem = Problem(seed, regions)
        problem.check(arguments.threads)
        if arguments.fail_allocations:
            problem.check_failing_allocations()
        if problem.rng.random() < 0.1 and problem.spoil_index():
            problem.check_that_it_raises()
        seed += 1
    print(f"{seed - arguments.seed} problems")
    for path, record in sorted(RECORDS.items()):
        print(f"  {path}: {record}")
    vacuous = [path for path, record in RECORDS.items() if record.zeros > record.elements / 3]
    assert not vacuous, f"more than a third of the results is zero: {vacuous}"


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long to go on")
    parser.add_argument("--problems", type=int, default=sys.maxsize, help="at the most")
    parser.add_argument("--seed", type=int, default=0, help="of the first problem")
    parser.add_argument("--threads", type=int, default=1, help="up to so many share a call")
    parser.add_argument("--fail-allocations", action="store_true", help="one after the other")
    parser.add_argument("--current", help=argparse.SUPPRESS)  # where to tell the seed
    return parser.parse_args()


def main():
    """Run in a process of its own, which a stray access ends, and tell what repeats a failure."""
    arguments = parse()
    if arguments.current is not None:
        with open(arguments.current, "r+b") as file:
            fuzz(arguments, mmap.mmap(file.fileno(), SEED_BYTES))
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(SEED_BYTES))
        file.flush()
        flags = os.environ.get("PYTENSOR_FLAGS", "") + ",numba__cache=False" * (
            arguments.threads > 1
        )
        environment = {
            **os.environ,
            "PYTENSOR_FLAGS": flags,
            "NUMBA_NUM_THREADS": str(arguments.threads),
        }
        environment.setdefault("BLOCKSPARSE_CHECK_TABLES", "1")
        command = [sys.executable, "-X", "faulthandler", *sys.argv, "--current", file.name]
        run = subprocess.run(command, env=environment)
        if run.returncode:
            seed = int.from_bytes(Path(file.name).read_bytes(), "little")
            repeat = f"--problems 1 --seed {seed} --threads {arguments.threads}"
            repeat += " --fail-allocations" * arguments.fail_allocations
            print(f"failed: python tests/numba_fuzz.py {repeat}")
        raise SystemExit(bool(run.returncode))


if __name__ == "__main__":
    main()
