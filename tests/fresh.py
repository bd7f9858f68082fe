"""Processes in which nothing has run yet, that take no time to import what they need."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

# A server that has imported these and run nothing forks each of them, where a system can fork.
METHODS = multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver" if "forkserver" in METHODS else "spawn")
if "forkserver" in METHODS:
    CONTEXT.set_forkserver_preload(["lighter", "cases", "oracle", "blocksparse_ops"])


def in_a_fresh_process(function, *arguments):
    """What a function of a module returns there, or raises."""
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        return pool.submit(function, *arguments).result()
