"""Work on threads: no parallel code is compiled and no thread started before a call needs them."""

import os
from ctypes import addressof, c_int64

import numba
import numpy as np
from numba import prange
from numba.core.types import int64, void
from numba.extending import intrinsic

from blocksparse_ops.kernels.numba.arrays import load
from blocksparse_ops.kernels.numba.compile import Unit, call_address, kernel

# Whether this process must not use Numba's threads, and where kernels read it.
_alone = c_int64(0)
_ALONE = addressof(_alone)


def start_threads():
    """To be called before a parallel kernel is loaded."""
    numba.get_num_threads()  # starts them
    # Two threads at once in this layer end the process.
    if numba.threading_layer() == "workqueue":
        _work_alone()


def _work_alone():
    _alone.value = 1


def most_threads():
    return 1 if load(_ALONE, np.int64(0)) else numba.get_num_threads()


MOST_THREADS = Unit(most_threads, lambda _: int64(), on_disk=False)
ready_most_threads, call_most_threads = MOST_THREADS.ready, MOST_THREADS.call


@kernel
def threads_allowed(is_threaded):
    """How many threads a call may use, if it may use several."""
    if not is_threaded:
        return 1
    ready_most_threads(0, 0)
    return call_most_threads(0, 0, ())


def work_signature(scalar):
    """That of work(record, thread, like): what one thread does; all may run at once."""
    return void(int64, int64, scalar)


@intrinsic
def call_work(typing_context, address, record, thread, like):
    def generate(context, builder, signature, arguments):
        address, *others = arguments
        return call_address(context, builder, work_signature(like), address, others)

    return void(int64, int64, int64, like), generate


def on_threads(work, record, threads, like):
    for thread in prange(threads):
        call_work(work, record, thread, like)


ON_THREADS = Unit(on_threads, lambda scalar: void(int64, int64, int64, scalar), parallel=True)
ready_on_threads, call_on_threads = ON_THREADS.ready, ON_THREADS.call


class Work(Unit):
    """Functions work(record, thread, like), and what runs one of them on some threads."""

    def __init__(self, functions):
        super().__init__(functions, work_signature)
        self.run = self._make_run()

    def _make_run(self):
        ready, call, address = self.ready, self.call, self.address

        @kernel
        def run(like, which, record, threads):
            ready(like, which)
            if threads == 1:  # a prange would wake them all the same
                call(like, which, (record, 0, like))
            elif threads > 1:
                ready_on_threads(like, 0)
                call_on_threads(like, 0, (address(like, which), record, threads, like))

        return run


# A forked child inherits no threads, and GNU OpenMP ends one that uses its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_work_alone)
