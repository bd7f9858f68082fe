"""How Numba kernels are compiled: most into their callers, some by themselves.

Numba compiles a function once more into each function that calls it. The tiles, and what drives
them, take seconds to compile. So they are units: compiled once for each type of scalar, when a call
first needs them, put on PyTensor's disk cache, and called by address.

The type of scalar is that of an argument named `like`, a number or a record, whose value does not
matter; where one compilation does for all types, the number 0.
"""

import traceback
from ctypes import CFUNCTYPE, addressof, c_int64, c_void_p, cast
from functools import cache, partial
from types import FunctionType

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from pytensor.configdefaults import config
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS

from blocksparse_ops.kernels.numba import version
from blocksparse_ops.kernels.numba.records import scalar_of
from blocksparse_ops.kernels.numba.vector import WORD, WORD_BYTES

# Without fastmath: a reassociated sum has other bits in the rows that a vector loop leaves over.
OPTIONS = {
    "fastmath": False,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}

kernel = numba.njit(forceinline=True, **OPTIONS)

# What loads a function, by the address of its cell.
LOADERS = {}


@CFUNCTYPE(c_int64, c_int64)
def load_function(cell):
    """Load the function that this cell belongs to, and return 1; or report why not, and return 0.

    A callback of ctypes, not of Numba, which would compile it anew in each process. What it returns
    where it raises is not defined.
    """
    try:
        LOADERS[cell]()
    except BaseException:
        traceback.print_exc()
        return 0
    return 1


LOAD_FUNCTION = "blocksparse_load_function"
llvm.add_symbol(LOAD_FUNCTION, cast(load_function, c_void_p).value)

SCALARS = (types.float32, types.float64, types.int64)


def call_address(context, builder, signature, address, arguments):
    """Write the code that calls a function of Numba's by its address."""
    convention = context.call_conv
    function_type = convention.get_function_type(signature.return_type, signature.args)
    status, result = convention.call_function(
        builder,
        builder.inttoptr(address, function_type.as_pointer()),
        signature.return_type,
        signature.args,
        arguments,
    )
    with cgutils.if_unlikely(builder, status.is_error):
        convention.return_status_propagate(builder, status)
    return result


class Unit:
    """Functions of one signature, each compiled by itself when a call first needs it.

    Their addresses stand in cells of this process, which compiled code knows by a symbol. A caller
    makes sure by `ready` that a function is there: before threads start, since to compile takes
    Python's global lock, which whoever waits for the threads holds.

    Parameters
    ----------
    functions : callable or sequence of callables
        What Numba compiles.
    signature : callable
        From a type of scalar to the signature for it.
    parallel : bool
        Whether its pranges run on threads.
    on_disk : bool
        Whether another process may use its code.
    """

    def __init__(self, functions, signature, *, parallel=False, on_disk=True):
        self.functions = [functions] if callable(functions) else functions
        self.signature, self.parallel = signature, parallel
        self.name = self.functions[0].__name__ + "_parallel" * parallel
        self.is_cached = on_disk and config.numba__cache
        self._dispatcher = cache(self._make_dispatcher)
        self.cells = {scalar: self._make_cells(scalar) for scalar in SCALARS}
        self.ready, self.call = self._make_ready(), self._make_call()
        self.address = self._make_address()

    def _make_dispatcher(self, which):
        # On disk it is found by its key alone, and in a process by its qualified name.
        function, name = self.functions[which], f"{self.name}_{which}"
        function = FunctionType(
            function.__code__, function.__globals__, name, None, function.__closure__
        )
        function.__qualname__ = name
        # In place of PyTensor's cache Numba would take its own, which sees one file change only.
        if self.is_cached:
            CACHED_SRC_FUNCTIONS[function] = f"{name}_{version()}"
        return numba.njit(function, cache=self.is_cached, parallel=self.parallel, **OPTIONS)

    def _make_cells(self, scalar):
        cells = (c_int64 * len(self.functions))()
        llvm.add_symbol(self._symbol(scalar), addressof(cells))
        for which in range(len(cells)):
            LOADERS[addressof(cells) + which * WORD_BYTES] = partial(self.load, scalar, which)
        return cells

    def _symbol(self, scalar):
        return f"blocksparse_{self.name}_{version()}_{scalar}"

    def load(self, scalar, which):
        """Compile a function, or take it from the disk, and set its cell."""
        signature, dispatcher = self.signature(scalar), self._dispatcher(which)
        dispatcher.compile(signature)
        compiled = dispatcher.overloads[signature.args]
        name = compiled.fndesc.llvm_func_name
        self.cells[scalar][which] = compiled.library.get_pointer_to_function(name)

    def _cell(self, builder, scalar, which):
        """The address of the cell of a function."""
        symbol = self._symbol(scalar)
        cells = builder.module.globals.get(symbol)
        cells = cells or ir.GlobalVariable(builder.module, WORD, symbol)
        return builder.gep(cells, [which])

    def _make_address(self):
        @intrinsic
        def address(typing_context, like, which):
            """The address of a function that is there."""

            def generate(context, builder, _, values):
                return builder.load(self._cell(builder, scalar_of(like), values[1]))

            return types.int64(like, types.int64), generate

        return address

    def _make_ready(self):
        @intrinsic
        def ready(typing_context, like, which):
            """Make sure that a function is there for the type of scalar of `like`."""

            def generate(context, builder, _, values):
                cell = self._cell(builder, scalar_of(like), values[1])
                load_type = ir.FunctionType(WORD, [WORD])
                load = cgutils.get_or_insert_function(builder.module, load_type, LOAD_FUNCTION)
                with cgutils.if_unlikely(builder, cgutils.is_null(builder, builder.load(cell))):
                    loaded = builder.call(load, [builder.ptrtoint(cell, WORD)])
                    with cgutils.if_unlikely(builder, cgutils.is_null(builder, loaded)):
                        message = (f"{self.name} could not be compiled: see what was reported",)
                        context.call_conv.return_user_exc(builder, RuntimeError, message)
                return context.get_dummy_value()

            return types.void(like, types.int64), generate

        return ready

    def _make_call(self):
        @intrinsic
        def call(typing_context, like, which, arguments):
            """Call a function for the type of scalar of `like` with a tuple of arguments."""
            scalar = scalar_of(like)
            signature = self.signature(scalar)

            def generate(context, builder, _, values):
                address = builder.load(self._cell(builder, scalar, values[1]))
                arguments = cgutils.unpack_tuple(builder, values[2])
                return call_address(context, builder, signature, address, arguments)

            arguments = types.Tuple(signature.args)
            return signature.return_type(like, types.int64, arguments), generate

        return call
