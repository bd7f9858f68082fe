"""Who takes part: ours in each mode, and the peers that are installed."""

from importlib import import_module
from importlib.util import find_spec

import ours

# The modes with kernels of our own, which are held to the machine's limit.
OURS = {"C": "CVM", "Numba": "NUMBA"}

# What it needs, its module, its class there, and the arguments of that.
OTHERS = {
    "ours JAX": ("jax", "ours", "OursJAX", []),
    "ours PyTorch": ("torch", "ours", "OursPyTorch", []),
    "gather": ("pytensor", "peers.pytensor", "PyTensorGather", ["CVM"]),
    "gather Numba": ("pytensor", "peers.pytensor", "PyTensorGather", ["NUMBA"]),
    "NumPy": ("numpy", "peers.numpy", "NumPy", []),
    "dense": ("numpy", "peers.numpy", "Dense", []),
    "BSR": ("scipy", "peers.scipy", "BSR", []),
    "Torch": ("torch", "peers.torch", "Torch", []),
    "Torch compiled": ("torch", "peers.torch", "TorchCompiled", []),
    "JAX": ("jax", "peers.jax", "JAX", []),
    "JAX map": ("jax", "peers.jax", "JAXMap", []),
}
NAMES = [*OURS, *OTHERS]


def choose(options):
    """Leave those that are installed in `options.contenders`, all if None; return the others."""
    chosen = options.contenders or NAMES
    if unknown := set(chosen) - set(NAMES):
        raise SystemExit(f"no contender {', '.join(unknown)}; there are {', '.join(NAMES)}")
    absent = [n for n in chosen if n not in OURS and find_spec(OTHERS[n][0]) is None]
    options.contenders = [name for name in chosen if name not in absent]
    return absent


class Contender:
    """Something that has a method for each quantity that it computes.

    The method of a quantity's name takes a problem and gives a `Call`.
    """

    def __init__(self, name):
        self.name = name
        if name in OURS:
            self.methods = ours.Ours(OURS[name])
        else:
            _, module, kind, arguments = OTHERS[name]
            self.methods = getattr(import_module(module), kind)(*arguments)

    def does(self, problem, quantity):
        only = getattr(self.methods, "only", None) or (problem.name,)
        return getattr(self.methods, quantity, None) is not None and problem.name in only

    def call(self, problem, quantity):
        return getattr(self.methods, quantity)(problem)

    def gathered_bytes(self, problem, quantity):
        """What its copies of the blocks in use take, one for each example that uses them."""
        copies = getattr(self.methods, "gathered_copies", None) or {}
        return copies.get(quantity, 0) * problem.gathered_bytes
