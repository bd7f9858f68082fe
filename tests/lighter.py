"""Less time to compile what is PyTensor's: importing this is enough.

Numba and LLVM take longer for what PyTensor generates, of which a test runs most once, than for our
kernels. That is hardly optimised, and where `in_parts()` says so not compiled at all: our ops are
compiled one by one, and Python runs the others. Our kernels, whose bits and vectors are tested, are
as ever. And of the ops that PyTensor could compile by g++, each by itself, ours alone are. What
rewriting finds out anew for each graph, node or comparison is kept.
"""

import gc

import pytensor
from numba.core import codegen, config
from numba.core.registry import cpu_target
from pytensor.compile.builders import OpFromGraph
from pytensor.compile.mode import Mode
from pytensor.graph.op import _NoPythonOp
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.link.c.op import COp, ExternalCOp, _NoPythonCOp
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS, compile_numba_function_src
from pytensor.link.numba.linker import NumbaLinker
from pytensor.link.utils import fgraph_to_python
from pytensor.link.vm import VMLinker
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.variable import TensorConstant

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
    """PyTensor compiles the function of a graph, and once more in a function that calls it only.

    And it names what it puts on the disk after a temporary file, so that no process finds it again.
    """
    if not pytensor.config.numba__cache:
        return convert_twice(self, fgraph, **kwargs)
    # Imported when PyTensor does, which is tested.
    from pytensor.link.numba.dispatch.basic import numba_funcify_and_cache_key

    function, key = numba_funcify_and_cache_key(fgraph, **kwargs)
    if key is not None:
        CACHED_SRC_FUNCTIONS[function.py_func] = f"{key}_in_tests"
        code = function.py_func.__code__
        function.py_func.__code__ = code.replace(co_filename=f"<{code.co_name}>")
    return function, key


def convert_parts(self, fgraph, **kwargs):
    return fgraph_to_python(
        fgraph, part_of, type_conversion_fn=lambda value, **_: value, fgraph_name="parts"
    )


def part_of(op, node=None, **kwargs):
    core = op.core_op if isinstance(op, Blockwise) else op
    # What is a graph itself is by now rewritten for Numba.
    is_compiled = is_ours(core) or isinstance(op, _NoPythonOp | OpFromGraph)
    return (compiled_part if is_compiled else python_part)(op, node)


def compiled_part(op, node):
    """A function that Python can call, one for all nodes that PyTensor says are compiled alike."""
    from pytensor.link.numba.dispatch.basic import numba_funcify_and_cache_key, numba_njit

    function, key = numba_funcify_and_cache_key(op, node=node)
    alike = key, *(variable.type for variable in (*node.inputs, *node.outputs))
    if key is not None and alike in PARTS:
        return PARTS[alike]
    names = ", ".join(f"x{k}" for k in range(len(node.inputs)))
    is_kept = key is not None and pytensor.config.numba__cache
    called = compile_numba_function_src(
        f"def part({names}): return function({names})",
        "part",
        {"__name__": __name__, "function": function},
        cache_key=f"{key}_part" if is_kept else None,
    )
    PARTS[alike] = numba_njit(called, final_function=True, cache=is_kept)
    return PARTS[alike]


PARTS = {}


def python_part(op, node):
    def part(*inputs):
        storage = [[None] for _ in node.outputs]
        op.perform(node, list(inputs), storage)
        values = tuple(value for (value,) in storage)
        return values if len(values) > 1 else values[0]

    part.__name__ = type(op).__name__
    return part


def in_parts(is_on):
    """Whether Numba compiles our ops one by one, as whole graphs else."""
    convert, compile_whole = (
        (convert_parts, lambda self, function: function) if is_on else (convert_once, jit_compile)
    )
    NumbaLinker.fgraph_convert, NumbaLinker.jit_compile = convert, compile_whole


convert_twice, jit_compile = NumbaLinker.fgraph_convert, NumbaLinker.jit_compile
in_parts(False)


def is_ours(op):
    return type(op).__module__.startswith("blocksparse_ops.")


def make_c_thunk(self, *args, **kwargs):
    if not is_ours(self) and not isinstance(self, _NoPythonCOp):
        raise NotImplementedError("run by Python in tests")
    return compiled_thunk(self, *args, **kwargs)


compiled_thunk, COp.make_c_thunk = COp.make_c_thunk, make_c_thunk


def fn_in_python(self):
    """What an op that is a graph runs, where it is not inlined: in the default mode, Numba's."""
    with pytensor.config.change_flags(mode=AS_IT_STANDS):
        return compiled_fn.fget(self)


# Runs graphs in Python, and leaves out what is not chosen.
IN_PYTHON = VMLinker(use_cloop=False, c_thunks=False)
AS_IT_STANDS = Mode(IN_PYTHON, None)
compiled_fn, OpFromGraph.fn = OpFromGraph.fn, property(fn_in_python)


def optimizer_once(self):
    """Rewriters by what they are asked for, which keep what they found out about classes of ops."""
    query = self._optimizer
    if not isinstance(query, RewriteDatabaseQuery) or query.subquery or query.extra_rewrites:
        return queried.fget(self)
    name = str(query)
    if name not in OPTIMIZERS:
        OPTIMIZERS[name] = queried.fget(self)
    return OPTIMIZERS[name]


OPTIMIZERS = {}
queried, Mode.optimizer = Mode.optimizer, property(optimizer_once)


def load_once(self, func_files):
    """The C++ code of an op, which PyTensor reads from its file for each that is made."""
    read_by = (type(self), *func_files)
    if read_by not in CODE:
        load_c_code(self, func_files)
        CODE[read_by] = self.func_codes, self.code_sections
    self.func_codes, self.code_sections = CODE[read_by]


CODE = {}
load_c_code, ExternalCOp.load_c_code = ExternalCOp.load_c_code, load_once


def sign_once(self):
    """What a constant is compared by: PyTensor looks for NaN in it for each comparison."""
    if self.data.size != 1:
        return sign(self)
    if not hasattr(self, "signature_in_tests"):
        self.signature_in_tests = sign(self)
    return self.signature_in_tests


sign, TensorConstant.signature = TensorConstant.signature, sign_once

# A compiler makes many objects and few cycles: to look for these takes a tenth of its time.
gc.set_threshold(100_000, 20, 50)
