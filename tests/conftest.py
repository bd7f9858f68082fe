import os
from importlib import metadata, util

# A rewrite that fails is an error, and so is a shape that cannot be inferred, in doctests and in
# programs that tests run, too: PyTensor would print it and go on. And PyTensor's C++ is compiled
# without debugging information, which takes a quarter of g++'s time.
flags = os.environ.get("PYTENSOR_FLAGS", "")
os.environ["PYTENSOR_FLAGS"] = f"gcc__cxxflags=-g0,{flags},on_opt_error=raise,on_shape_error=raise"
# Each call of a Numba kernel makes sure that nothing was written behind a table of its memory.
os.environ.setdefault("BLOCKSPARSE_CHECK_TABLES", "1")
# Its compiler takes PyTorch seconds for each shape: test_pytorch.py turns it on for some.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
# Of JAX most of the time is XLA's, on loops that run once, and before 0.11 half of that goes into
# fusions. XLA stops at a flag that it does not know.
XLA = ["xla_backend_optimization_level=0", "xla_llvm_disable_expensive_passes=true"]
XLA += ["xla_cpu_parallel_codegen_split_count=1"]
if util.find_spec("jax") and [int(n) for n in metadata.version("jax").split(".")[:2]] < [0, 11]:
    XLA += ["xla_cpu_use_fusion_emitters=false"]
os.environ.setdefault("XLA_FLAGS", " ".join(f"--{flag}" for flag in XLA))

import lighter  # noqa: E402
import pytest  # noqa: E402
from pytensor import config  # noqa: E402

# All that JAX compiles is kept, as what PyTensor compiles is.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(config.compiledir, "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# How many lines of a program PyTensor keeps with a variable: to find them takes a tenth of the time
# to make graphs and to rewrite them, so that only tests of these have them.
LINES = config.traceback__limit
OF_LINES = {"test_explain"}

# Files of which Numba compiles each graph as a whole, as users have it: they test how our ops stand
# in that, what it holds, how fast it is, or PyTensor's own words. All others are of values.
WHOLE = {
    "test_benchmarks",
    "test_by_hand",
    "test_direct",
    "test_examples",
    "test_memory",
    "test_numba",
    "test_package",
    "test_peak_memory",
    "test_pymc",
    "test_pymc_example",
    "test_scan",
    "test_threads",
    "test_values",
}

# Where the environment asks for it, those of values are compiled alike.
ALL_WHOLE = os.environ.get("BLOCKSPARSE_WHOLE_GRAPHS") == "1"

# Files that take long.
FIRST = {"test_kernel_driver", "test_numba", "test_updates", "test_values", "test_vectors"}


def pytest_addoption(parser):
    parser.addoption(
        "--campaigns", action="store_true", help="campaigns as long as CI runs them, not in short"
    )


@pytest.fixture(scope="session")
def in_campaign(request):
    """What chooses between a number of problems and the greater one of a campaign."""
    is_long = request.config.getoption("--campaigns")
    return lambda short, long: long if is_long else short


@pytest.fixture
def on_cpu(monkeypatch):
    """JAX chooses as on a CPU, whatever it runs on."""
    monkeypatch.setattr("blocksparse_ops.kernels.jax_gathered.is_on_gpu", lambda: False)


def pytest_collection_modifyitems(config, items):
    """Have no long file come last, when all other processes are done."""
    items.sort(key=lambda item: item.path.stem not in FIRST)
    if not config.getoption("--campaigns"):
        for item in items:
            if item.get_closest_marker("campaign"):
                item.add_marker(pytest.mark.skip(reason="a campaign: runs with --campaigns"))


def pytest_runtest_setup(item):
    stem = item.path.stem
    lighter.in_parts(stem.startswith("test_") and stem not in WHOLE and not ALL_WHOLE)
    config.traceback__limit = LINES if stem in OF_LINES else 0


def pytest_runtest_teardown():
    config.traceback__limit = LINES


def pytest_generate_tests(metafunc):
    """Give a test of `layout` and `dtype` those of its class."""
    if "layout" in metafunc.fixturenames:
        pairs = [(layout, dtype) for layout in metafunc.cls.layouts for dtype in layout.dtypes]
        metafunc.parametrize(("layout", "dtype"), pairs, ids=str)
