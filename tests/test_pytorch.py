"""What PyTorch adds to the tests that all backends share: its own derivatives, and its compiler."""

import subprocess
import sys

import numpy as np
import oracle
import pytensor
import pytest
from cases import FEW_SIZES, Draw, Sizes, symbols
from numpy.lib.stride_tricks import as_strided
from pytensor.compile.mode import get_mode
from pytensor.graph import FunctionGraph
from test_values import PROBLEMS, LibraryValues

from blocksparse_ops import SparseBlockGemv, sparse_block_dot, sparse_block_gemv

torch = pytest.importorskip("torch")
from torch._dynamo.utils import counters  # noqa: E402

# The triples as they stand, and sorted by block.
SIZES = [Sizes(2, 3, 2, 3, 2, 2, 1), Sizes(1, 1, 2, 3, 2, 2, 2)]

# With examples enough for some of their places to be padded.
PADDED = Sizes(2, 3, 2, 3, 3, 2, 4)


class TestPyTorch(LibraryValues):
    mode = "PYTORCH"


@pytest.fixture
def compiler(monkeypatch):
    """PyTorch's own, which tests switch off, with nothing compiled yet."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    with torch._dynamo.config.patch(disable=False):
        torch.compiler.reset()
        counters.clear()
        yield


@pytest.mark.parametrize(
    ("problem", "sizes", "padding_idx"),
    [
        *((problem, FEW_SIZES[k], None) for problem in PROBLEMS for k in (3, 5)),
        ("gemv", FEW_SIZES[3], -1),
        ("outer", FEW_SIZES[3], -1),
    ],
)
def test_compiled(problem, sizes, padding_idx, compiler):
    """Through PyTorch's compiler, which for the first of these sizes gets a form of its own.

    It breaks its graph in two where zeros are allocated, of sizes that are computed, alone.
    """
    build, draw, enter, expect = PROBLEMS[problem]
    arrays = draw(Draw(sizes, 2, "float32", padding_idx=padding_idx)).values()
    inputs = list(symbols(dict(enumerate(enter(*arrays)))).values())
    output = build(*inputs, padding_idx=padding_idx)
    function = pytensor.function(inputs, output, mode="PYTORCH")
    oracle.assert_within_bound(function(*enter(*arrays)), expect(*arrays, padding_idx))
    assert counters["stats"]["unique_graphs"] > 0
    assert bool(counters["graph_break"]) == (problem == "dot")


@pytest.mark.parametrize("sizes", [(1, 5), (4, 1), (1, 1)], ids=str)
def test_compiled_a_wrong_index_of_one_block_is_an_error(sizes, compiler):
    """Which the compiler may not leave out, though all indices name one block."""
    arrays = Draw(Sizes(*sizes, 3, 4, 1, 1, 2), 0, "float64").gemv()
    inputs = symbols(arrays, is_static=True)
    function = pytensor.function(list(inputs.values()), sparse_block_gemv(**inputs), mode="PYTORCH")
    function(*arrays.values())
    for name in ("inputIdx", "outputIdx"):
        wrong = arrays | {name: np.array([[0], [7]])}
        with pytest.raises(IndexError, match=rf"{name}\[1, 0\] = 7 is out of range"):
            function(*wrong.values())


def test_compiled_an_index_that_is_a_view(compiler):
    """One window that all examples share, and windows that are transposed."""
    arrays = Draw(Sizes(4, 5, 2, 3, 2, 2, 3), 0, "float64").gemv()
    arrays["inputIdx"] = as_strided(arrays["inputIdx"], (3, 2), (0, 8))
    arrays["outputIdx"] = np.asfortranarray(arrays["outputIdx"])
    inputs = symbols(arrays)
    function = pytensor.function(list(inputs.values()), sparse_block_gemv(**inputs), mode="PYTORCH")
    oracle.assert_within_bound(function(*arrays.values()), oracle.gemv(*arrays.values()))


def test_what_computes_with_the_columns_of_a_bias():
    arrays = Draw(SIZES[0], 0, "float64").dot()
    inputs = symbols(arrays)
    y = sparse_block_dot(**inputs)
    outputs = [y.shape[2] + 1, y - y.mean(-1, keepdims=True)]
    columns, centred = pytensor.function(list(inputs.values()), outputs, mode="PYTORCH")(
        *arrays.values()
    )
    value = y.eval(dict(zip(inputs.values(), arrays.values(), strict=True)), mode="FAST_COMPILE")
    assert columns == value.shape[2] + 1
    np.testing.assert_allclose(centred, value - value.mean(-1, keepdims=True), atol=1e-12)


def torchified(inputs, output):
    """The function that PyTensor made for PyTorch, without its own wrapper."""
    from pytensor.link.pytorch.dispatch import pytorch_funcify

    fgraph = FunctionGraph(inputs, [output], clone=True)
    get_mode("PYTORCH").optimizer.rewrite(fgraph)
    function = pytorch_funcify(fgraph)
    return lambda *values: function(*values)[0]


@pytest.mark.parametrize(
    ("sizes", "padding_idx"),
    [(SIZES[0], None), (SIZES[1], None), (PADDED, 1)],
    ids=["as they stand", "sorted", "padded"],
)
@pytest.mark.parametrize("problem", ["gemv", "dot", "outer"])
def test_derivatives_by_pytorch(problem, sizes, padding_idx):
    """First and second, forward and in reverse."""
    build, draw, *_ = PROBLEMS[problem]
    arrays = draw(Draw(sizes, 0, "float64", padding_idx=padding_idx))
    # What is compared with finite differences must be finite.
    arrays = {name: np.nan_to_num(a) for name, a in arrays.items()}
    inputs = symbols(arrays)
    output = build(*inputs.values(), padding_idx=padding_idx)
    function = torchified(list(inputs.values()), output)
    values = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays.values()]
    assert torch.autograd.gradcheck(function, values, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, values)


@pytest.mark.parametrize("padding_idx", [None, 1])
@pytest.mark.parametrize("mapped", [(0,), (1,), (2,), (0, 3), (1, 4), (0, 1, 2, 3, 4)])
def test_vmap(mapped, padding_idx):
    draws = [
        list(Draw(PADDED, seed, "float64", padding_idx=padding_idx).gemv().values())
        for seed in range(3)
    ]
    inputs = symbols(Draw(PADDED, 0, "float64").gemv())
    op = SparseBlockGemv(padding_idx=padding_idx)
    function = torchified(list(inputs.values()), op(**inputs))
    values = [
        torch.tensor(np.stack([draw[k] for draw in draws]) if k in mapped else draws[0][k])
        for k in range(5)
    ]
    axes = tuple(0 if k in mapped else None for k in range(5))
    actual = torch.vmap(function, axes)(*values)
    for one in range(3):
        single = [value[one] if k in mapped else value for k, value in enumerate(values)]
        torch.testing.assert_close(actual[one], function(*single), equal_nan=True)


def test_vmap_of_vmap():
    arrays = Draw(SIZES[0], 0, "float64").gemv()
    inputs = symbols(arrays)
    function = torchified(list(inputs.values()), sparse_block_gemv(**inputs))
    o, W, h, *indices = (torch.tensor(a) for a in arrays.values())
    scales = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(2, 3, 1, 1, 1)
    inner = torch.vmap(lambda h: function(o, W, h, *indices))
    actual = torch.vmap(inner)(scales * h)
    for k in np.ndindex(2, 3):
        torch.testing.assert_close(actual[k], function(o, W, scales[k] * h, *indices))


def test_vmap_over_weights_tells_a_wrong_index():
    arrays = Draw(SIZES[0], 0, "float64").gemv()
    inputs = symbols(arrays)
    function = torchified(list(inputs.values()), sparse_block_gemv(**inputs))
    arrays["inputIdx"][0, 0] = SIZES[0].iBlocks
    o, W, *others = (torch.tensor(a) for a in arrays.values())
    with pytest.raises(IndexError, match="out of range"):
        torch.vmap(function, (None, 0, None, None, None))(o, torch.stack([W, W]), *others)


HAND_MADE = """
import numpy as np, pytensor
import blocksparse_ops.link.pytorch
from pytensor.compile.mode import Mode
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.link.pytorch.linker import PytorchLinker
from blocksparse_ops import sparse_block_gemv
mode = Mode(PytorchLinker(), RewriteDatabaseQuery(include=["fast_compile"]))
h = pytensor.tensor.tensor3()
out = sparse_block_gemv(np.zeros((1, 1, 1)), np.ones((1, 1, 1, 1)), h, [[0]], [[0]])
print(pytensor.function([h], out, mode=mode)(np.full((1, 1, 1), 3.0)).item())
"""


def test_a_mode_of_ones_own():
    """It has no tag that could load the dispatch, so there is an import that does."""
    command = [sys.executable, "-c", HAND_MADE]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(run.stdout) == 3


def test_negative_strides_are_refused():
    arrays = Draw(SIZES[0], 0, "float64").gemv()
    inputs = symbols(arrays)
    function = pytensor.function(
        list(inputs.values()), sparse_block_gemv(*inputs.values()), mode="PYTORCH"
    )
    arrays["h"] = arrays["h"][..., ::-1]
    with pytest.raises(ValueError, match="negative"):
        function(*arrays.values())
