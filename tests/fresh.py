"""Processes in which nothing has run yet, that take no time to import what they need."""

import multiprocessing

# A server that has imported these and run nothing forks each of them, where a system can fork.
METHODS = multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver" if "forkserver" in METHODS else "spawn")
if "forkserver" in METHODS:
    CONTEXT.set_forkserver_preload(["lighter", "cases", "oracle", "blocksparse_ops"])


def in_a_fresh_process(function, *arguments):
    """Call a function of a module there, and fail if it does."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
