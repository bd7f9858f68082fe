"""Workers on threads. With OpenMP off, no parallel code is compiled and no thread is started."""

import os
from ctypes import addressof, c_int64

import numba
import numpy as np
from numba.core.types import int64

from blocksparse_ops.kernels.numba.arrays import load
from blocksparse_ops.kernels.numba.compile import Unit, kernel

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


@kernel
def one_thread():
    """What stands for `threads_allowed` if OpenMP is off."""
    return 1


MOST_THREADS = Unit(most_threads, lambda _: int64(), on_disk=False)
ready_most_threads, call_most_threads = MOST_THREADS.ready, MOST_THREADS.call


@kernel
def threads_allowed():
    ready_most_threads(0, 0)
    return call_most_threads(0, 0, ())


# A forked child inherits no threads, and GNU OpenMP ends one that uses its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_work_alone)
