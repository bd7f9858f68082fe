"""Ops that are linked right in a process that has only unpickled them."""


class LoadsDispatchWhenUnpickled:
    """An op that registers the Numba dispatch when it is unpickled, or copied.

    A function that was pickled is linked again without being rewritten, so nothing else would
    do so before the linker asks for it.
    """

    def __setstate__(self, state):
        self.__dict__.update(state)
        from blocksparse_ops.link.lazy import load_dispatch

        load_dispatch("numba")
