"""What PyTorch adds to the tests that all backends share: its own derivatives, and its compiler."""

import numpy as np
import oracle
import pytensor
import pytest
from cases import FEW_SIZES, FORWARD_LAYOUTS, Draw, Sizes, few_sizes, symbols
from pytensor.compile.mode import get_mode
from pytensor.graph import FunctionGraph
from test_values import PROBLEMS, Values

from blocksparse_ops import sparse_block_dot, sparse_block_gemv, sparse_block_outer

torch = pytest.importorskip("torch")

# The triples as they stand, and sorted by block.
SIZES = [Sizes(2, 3, 2, 3, 2, 2, 1), Sizes(1, 1, 2, 3, 2, 2, 2)]


class TestPyTorch(Values):
    mode = "PYTORCH"
    sizes = few_sizes
    layouts = FORWARD_LAYOUTS
    bits_are_the_same = False


@pytest.mark.parametrize("sizes", [FEW_SIZES[3], FEW_SIZES[6]], ids=["as they stand", "sorted"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_compiled(problem, sizes):
    """Through PyTorch's compiler, which for the first of these sizes gets a form of its own."""
    build, draw, enter, expect = PROBLEMS[problem]
    arrays = draw(Draw(sizes, 0, "float32")).values()
    inputs = list(symbols(dict(enumerate(enter(*arrays)))).values())
    with torch._dynamo.config.patch(disable=False):
        torch.compiler.reset()
        function = pytensor.function(inputs, build(*inputs), mode="PYTORCH")
        oracle.assert_within_bound(function(*enter(*arrays)), expect(*arrays))


def torchified(inputs, output):
    """The function that PyTensor made for PyTorch, without its own wrapper."""
    from pytensor.link.pytorch.dispatch import pytorch_funcify

    fgraph = FunctionGraph(inputs, [output], clone=True)
    get_mode("PYTORCH").optimizer.rewrite(fgraph)
    function = pytorch_funcify(fgraph)
    return lambda *values: function(*values)[0]


@pytest.mark.parametrize("sizes", SIZES, ids=["as they stand", "sorted"])
@pytest.mark.parametrize(
    ("build", "draw"),
    [
        (sparse_block_gemv, Draw.gemv),
        (sparse_block_dot, Draw.dot),
        (sparse_block_outer, Draw.outer),
    ],
    ids=["gemv", "dot", "outer"],
)
def test_derivatives_by_pytorch(build, draw, sizes):
    """First and second, forward and in reverse."""
    arrays = draw(Draw(sizes, 0, "float64"))
    inputs = symbols(arrays)
    function = torchified(list(inputs.values()), build(**inputs))
    values = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays.values()]
    assert torch.autograd.gradcheck(function, values, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, values)


@pytest.mark.parametrize("mapped", [(0,), (1,), (2,), (0, 3), (1, 4), (0, 1, 2, 3, 4)])
def test_vmap(mapped):
    draws = [list(Draw(SIZES[0], seed, "float64").gemv().values()) for seed in range(3)]
    inputs = symbols(Draw(SIZES[0], 0, "float64").gemv())
    function = torchified(list(inputs.values()), sparse_block_gemv(**inputs))
    values = [
        torch.tensor(np.stack([draw[k] for draw in draws]) if k in mapped else draws[0][k])
        for k in range(5)
    ]
    axes = tuple(0 if k in mapped else None for k in range(5))
    actual = torch.vmap(function, axes)(*values)
    for one in range(3):
        single = [value[one] if k in mapped else value for k, value in enumerate(values)]
        torch.testing.assert_close(actual[one], function(*single))


def test_vmap_over_weights_tells_a_wrong_index():
    arrays = Draw(SIZES[0], 0, "float64").gemv()
    inputs = symbols(arrays)
    function = torchified(list(inputs.values()), sparse_block_gemv(**inputs))
    arrays["inputIdx"][0, 0] = SIZES[0].iBlocks
    o, W, *others = (torch.tensor(a) for a in arrays.values())
    with pytest.raises(IndexError, match="out of range"):
        torch.vmap(function, (None, 0, None, None, None))(o, torch.stack([W, W]), *others)
