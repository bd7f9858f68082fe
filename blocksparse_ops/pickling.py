"""Ops that are linked right in a process that has only unpickled them."""

from blocksparse_ops.link import lazy


class LoadsDispatchWhenUnpickled:
    """An op that, when it is unpickled, registers the Numba dispatch if it was registered before.

    A function that was pickled is linked again without being rewritten, so nothing else would
    do so before the linker asks for it. PyTensor's cache of compiled C unpickles ops as well, in
    processes that have no use for a backend, so those that take longer to import are left out.
    """

    def __getstate__(self):
        return super().__getstate__(), lazy.is_loaded("numba")

    def __setstate__(self, state):
        attributes, has_numba = state
        self.__dict__.update(attributes)
        if has_numba:
            lazy.load_dispatch("numba")
