"""Less time to compile what is PyTensor's: importing this is enough.

LLVM takes as long as all the rest of Numba, and most of it for what PyTensor generates and a test
runs once. That is hardly optimised; our kernels, whose bits and vectors are tested, are as ever.
And of the ops that PyTensor could compile by g++, each by itself, ours alone are.
"""

import gc

import pytensor
from numba.core import codegen, config
from numba.core.registry import cpu_target
from pytensor.compile.builders import OpFromGraph
from pytensor.link.c.op import COp, _NoPythonCOp
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS
from pytensor.link.numba.linker import NumbaLinker

from blocksparse_ops.kernels.numba.compile import Unit

CODEGEN = cpu_target.target_context.codegen()


def backend(level):
    """What makes machine code: its level is that of when it is made, not of when it is used."""
    config.OPT = type(config.OPT)(level)
    made = codegen.JITCPUCodegen("numba.exec")
    return made._tm, made._engine


def optimise(opt, backend):
    config.OPT = opt
    CODEGEN._tm, CODEGEN._engine = backend


def load_optimised(self, scalar, which):
    optimise(*FULLY)
    try:
        load(self, scalar, which)
    finally:
        optimise(*HARDLY)


FULLY = config.OPT, (CODEGEN._tm, CODEGEN._engine)
# At level 0 LLVM keeps names of this process, with which Numba puts nothing on the disk.
HARDLY = type(config.OPT)(1), backend(0)

load, Unit.load = Unit.load, load_optimised
optimise(*HARDLY)


def convert_once(self, fgraph, **kwargs):
    """PyTensor compiles the function of a graph, and once more in a function that calls it only."""
    if not pytensor.config.numba__cache:
        return convert_twice(self, fgraph, **kwargs)
    # Imported when PyTensor does, which is tested.
    from pytensor.link.numba.dispatch.basic import numba_funcify_and_cache_key

    function, key = numba_funcify_and_cache_key(fgraph, **kwargs)
    if key is not None:
        CACHED_SRC_FUNCTIONS[function.py_func] = f"{key}_in_tests"
    return function, key


convert_twice, NumbaLinker.fgraph_convert = NumbaLinker.fgraph_convert, convert_once


def make_c_thunk(self, *args, **kwargs):
    is_ours = type(self).__module__.startswith("blocksparse_ops.")
    if not is_ours and not isinstance(self, _NoPythonCOp):
        raise NotImplementedError("run by Python in tests")
    return compiled_thunk(self, *args, **kwargs)


compiled_thunk, COp.make_c_thunk = COp.make_c_thunk, make_c_thunk


def fn_in_python(self):
    """What an op that is a graph runs, where it is not inlined: in the default mode, Numba's."""
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        return compiled_fn.fget(self)


compiled_fn, OpFromGraph.fn = OpFromGraph.fn, property(fn_in_python)

# A compiler makes many objects and few cycles: to look for these takes a tenth of its time.
gc.set_threshold(100_000, 20, 50)
