"""Ops that are linked right in a process that has only unpickled them."""

from blocksparse_ops.link import lazy


class LoadsDispatchWhenUnpickled:
    """An op that, when it is unpickled, registers the dispatches that were registered before.

    A function that was pickled is linked again without being rewritten, so nothing else would
    do so before the linker asks for them.
    """

    def __getstate__(self):
        return super().__getstate__(), lazy.loaded_backends()

    def __setstate__(self, state):
        attributes, backends = state
        self.__dict__.update(attributes)
        for backend in backends:
            lazy.load_dispatch(backend)
