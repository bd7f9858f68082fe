"""How every Numba kernel is compiled."""

import numba

# Without fastmath: a reassociated sum has other bits in the rows that a vector loop leaves over.
kernel = numba.njit(fastmath=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)
