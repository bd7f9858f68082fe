import os

# A rewrite that fails is an error, and so is a shape that cannot be inferred, in doctests and in
# programs that tests run, too: PyTensor would print it and go on. And PyTensor's C++ is compiled
# without debugging information, which takes a quarter of g++'s time.
flags = os.environ.get("PYTENSOR_FLAGS", "")
os.environ["PYTENSOR_FLAGS"] = f"gcc__cxxflags=-g0,{flags},on_opt_error=raise,on_shape_error=raise"
# Its compiler takes PyTorch seconds for each shape: test_pytorch.py turns it on for some.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
# Of JAX most of the time is XLA's, on loops that run once.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import lighter  # noqa: E402, F401
from pytensor import config  # noqa: E402

# All that JAX compiles is kept, as what PyTensor compiles is.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(config.compiledir, "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# How many lines of a program PyTensor keeps with a variable: to find them takes a tenth of the time
# to make graphs and to rewrite them, so that only tests of these have them.
LINES = config.traceback__limit
OF_LINES = {"test_explain"}

# Files of few tests that take long.
FIRST = {"test_kernel_driver", "test_numba", "test_random_graphs", "test_scan", "test_vectors"}


def pytest_collection_modifyitems(items):
    """Have no long file come last, when all other processes are done."""
    items.sort(key=lambda item: item.path.stem not in FIRST)


def pytest_runtest_setup(item):
    config.traceback__limit = LINES if item.path.stem in OF_LINES else 0


def pytest_runtest_teardown():
    config.traceback__limit = LINES


def pytest_generate_tests(metafunc):
    """Give a test of `layout` and `dtype` those of its class."""
    if "layout" in metafunc.fixturenames:
        pairs = [(layout, dtype) for layout in metafunc.cls.layouts for dtype in layout.dtypes]
        metafunc.parametrize(("layout", "dtype"), pairs, ids=str)
