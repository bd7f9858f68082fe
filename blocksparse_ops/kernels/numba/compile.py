"""How Numba kernels are compiled: most into their callers, some by themselves.

Numba compiles a function once more into each function that calls it. The tiles, and what drives
them, take seconds to compile. So they are units: compiled once for each type of scalar, put on
PyTensor's disk cache, and called by a symbol, which every process sets to where its own copy lies.
"""

import inspect
from types import FunctionType

import llvmlite.binding as llvm
import numba
from numba.core import cgutils, types
from numba.extending import intrinsic
from pytensor.configdefaults import config
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS

from blocksparse_ops.kernels.numba import version

# Without fastmath: a reassociated sum has other bits in the rows that a vector loop leaves over.
OPTIONS = {
    "fastmath": False,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}

kernel = numba.njit(forceinline=True, **OPTIONS)


class Unit:
    """A function that is compiled by itself.

    Parameters
    ----------
    function : callable
        What Numba compiles.
    signature : callable
        From a Numba float to the signature for this type of scalar; from nothing, if it is one
        for all.
    uses : sequence of Unit
        The units that it calls.
    parallel : bool
        Whether its pranges run on threads.
    on_disk : bool
        Whether another process may use its code.
    """

    def __init__(self, function, signature, *, uses=(), parallel=False, on_disk=True):
        self.signature, self.uses = signature, uses
        self.of_scalar = len(inspect.signature(signature).parameters) > 0
        self.name = function.__name__ + "_parallel" * parallel
        # What is on the disk is found by the function's key alone, so each needs its own function.
        function = FunctionType(function.__code__, function.__globals__, self.name)
        # In place of PyTensor's cache Numba would take its own, which sees one file change only.
        cache = on_disk and config.numba__cache
        if cache:
            CACHED_SRC_FUNCTIONS[function] = f"{self.name}_{version()}"
        self.dispatcher = numba.njit(function, cache=cache, parallel=parallel, **OPTIONS)
        self.call = self._make_call()

    def symbol(self, scalar):
        return f"blocksparse_{self.name}_{version()}" + f"_{scalar}" * self.of_scalar

    def _signature_of(self, scalar):
        return self.signature(scalar) if self.of_scalar else self.signature()

    def load(self, scalar):
        """Compile it for this type of scalar, or take it from the disk, and set its symbol."""
        for unit in self.uses:
            unit.load(scalar)
        signature = self._signature_of(scalar)
        self.dispatcher.compile(signature)
        compiled = self.dispatcher.overloads[signature.args]
        address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
        llvm.add_symbol(self.symbol(scalar), address)

    def _make_call(self):
        @intrinsic
        def call(typing_context, scalar, arguments):
            """Call the unit for the type of `scalar` with a tuple of arguments."""
            signature = self._signature_of(scalar)

            def generate(context, builder, _, values):
                convention = context.call_conv
                kind = convention.get_function_type(signature.return_type, signature.args)
                symbol = self.symbol(scalar)
                function = cgutils.get_or_insert_function(builder.module, kind, symbol)
                arguments = cgutils.unpack_tuple(builder, values[1])
                status, result = convention.call_function(
                    builder, function, signature.return_type, signature.args, arguments
                )
                with cgutils.if_unlikely(builder, status.is_error):
                    convention.return_status_propagate(builder, status)
                return result

            return signature.return_type(scalar, types.Tuple(signature.args)), generate

        return call
