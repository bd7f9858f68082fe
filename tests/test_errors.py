"""What is refused, with which words, and that nothing was written by then."""

import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import ALL_MODES, COMPILED_LAYOUTS, MODES, Draw, Sizes, symbols
from scipy.sparse import csr_matrix
from test_values import PROBLEMS, compiled

from blocksparse_ops import (
    SparseBlockGemv,
    SparseBlockOuter,
    sparse_block_dot,
    sparse_block_gemv,
    sparse_block_gemv_inplace,
    sparse_block_outer,
    sparse_block_outer_inplace,
)
from blocksparse_ops.signature import DOT, GEMV, OUTER

SIZES = Sizes(iBlocks=3, oBlocks=4, iSize=5, oSize=6, iWin=2, oWin=3, batch=7)
CONTIGUOUS = COMPILED_LAYOUTS[0]

WRONG_INDICES = [
    ("int64", lambda n: n),
    ("int64", lambda n: -n - 1),
    ("int64", lambda n: 2**40),
    ("int64", lambda n: -(2**63)),
    ("int8", lambda n: -n - 1),
    ("uint8", lambda n: 255),
    ("uint64", lambda n: 2**64 - 1),
    ("uint64", lambda n: 2**63),
]


@cache
def update_in_place(mode, problem, index_dtype):
    """A function that adds to a shared variable in place, and the variable."""
    arrays = getattr(Draw(SIZES, 0, "float32", (index_dtype, index_dtype)), problem)()
    op = {"gemv": sparse_block_gemv_inplace, "outer": sparse_block_outer_inplace}[problem]
    o = pytensor.shared(arrays.pop("o"), "o")
    inputs = symbols(arrays)
    updates = {o: op(o, *inputs.values())}
    return pytensor.function(
        list(inputs.values()), updates=updates, mode=mode, accept_inplace=True
    ), o


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("problem", ["gemv", "outer"])
@pytest.mark.parametrize("which", [0, 1], ids=["input", "output"])
@pytest.mark.parametrize(("index_dtype", "wrong"), WRONG_INDICES)
def test_index_out_of_range(mode, problem, which, index_dtype, wrong):
    """At the last position of the last example, on a shared variable that is updated in place."""
    arrays = getattr(Draw(SIZES, 0, "float32", (index_dtype, index_dtype)), problem)()
    del arrays["o"]
    function, o = update_in_place(mode, problem, index_dtype)
    signature = {"gemv": GEMV, "outer": OUTER}[problem]
    name = list(signature.indexed)[which]
    blocks = (SIZES.iBlocks, SIZES.oBlocks)[which]
    value = wrong(blocks)
    arrays[name][-1, -1] = value
    before = o.get_value()
    position = f"{SIZES.batch - 1}, {(SIZES.iWin, SIZES.oWin)[which] - 1}"
    with pytest.raises(IndexError) as error:
        function(*arrays.values())
    message = str(error.value)
    assert f"{signature.op}: {name}[{position}] = {value} is out of range" in message
    assert f"[{-blocks}, {blocks})" in message
    assert o.get_value().tobytes() == before.tobytes()


COLUMNS = {
    "a new axis": lambda index: index[:, None],
    "one of several": lambda index: np.stack([index, index], 1)[:, 1:],
    "reversed": lambda index: index[::-1].copy()[::-1, None],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index_dtype", ["int64", "uint16"])
@pytest.mark.parametrize("column", COLUMNS)
def test_an_index_of_windows_of_one_place(mode, index_dtype, column):
    """Its rows may lie anywhere: the right one is computed with, the wrong one is found."""
    rng = np.random.default_rng(0)
    W, h, index = rng.normal(size=(1, 4, 2, 3)), rng.normal(size=(9, 1, 2)), rng.integers(4, size=9)
    function = dot_of_columns(mode, index_dtype)
    outputIdx = COLUMNS[column](index.astype(index_dtype))
    np.testing.assert_allclose(function(W, h, outputIdx), h @ W[0, index], rtol=1e-12)
    index[6] = 4
    with pytest.raises(IndexError, match=r"outputIdx\[6, 0\] = 4 is out of range"):
        function(W, h, COLUMNS[column](index.astype(index_dtype)))


@cache
def dot_of_columns(mode, index_dtype):
    W, h, outputIdx = pt.dtensor4(), pt.dtensor3(), pt.matrix(dtype=index_dtype)
    zeros = np.zeros((9, 1), "int64")
    out = sparse_block_dot(W, h, zeros, None, outputIdx)
    return pytensor.function([W, h, outputIdx], out, mode=mode)


DOT_AND_GRADIENTS = """
import sys
import lighter, numpy as np, pytensor, pytensor.tensor as pt
from blocksparse_ops import sparse_block_dot
mode, iBlocks, oBlocks = sys.argv[1], 2, 4
arrays = [np.ones(s, pytensor.config.floatX) for s in [(2, 4, 3, 3), (5, 2, 3), (4, 3)]]
for bias in ("bias", "no bias"):
    W, h, b = pt.tensor4(), pt.tensor3(), pt.matrix() if bias == "bias" else None
    inputIdx, outputIdx = pt.lmatrices(2)
    out = sparse_block_dot(W, h, inputIdx, b, outputIdx)
    floats = [v for v in (W, h, b) if v is not None]
    results = [out, *pt.grad(out.sum(), floats)]
    functions = [pytensor.function([*floats, inputIdx, outputIdx], result, mode=mode,
                                   on_unused_input="ignore") for result in results]
    for name, blocks in (("inputIdx", iBlocks), ("outputIdx", oBlocks)):
        # The gradient in the bias comes last: it does not depend on the input blocks.
        for function in functions[: -1 if (bias, name) == ("bias", "inputIdx") else None]:
            for value in (blocks, -blocks - 1, 2**40):
                indices = {k: np.zeros((5, 2), "int64") for k in ("inputIdx", "outputIdx")}
                indices[name][-1, -1] = value
                try:
                    function(*arrays[:len(floats)], *indices.values())
                    print(name, value, "no error")
                except IndexError as error:
                    print(name, value, str(error).splitlines()[0])
"""


@pytest.mark.parametrize("mode", MODES)
def test_index_of_dot(mode):
    """Named as the user named it, whatever is computed."""
    command = [sys.executable, "-c", DOT_AND_GRADIENTS, mode]
    folder = Path(__file__).parent
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert run.returncode == 0, run.stderr + run.stdout
    lines = run.stdout.splitlines()
    # Of a product with bias and its three gradients all but one depend on both indices, and so do
    # a product without and its two gradients; each takes three wrong values.
    assert len(lines) == 3 * (2 * 4 - 1 + 2 * 3)
    for line in lines:
        name, value, message = line.split(maxsplit=2)
        assert f"Idx[4, 1] = {value} is out of range: " in message
        # By the product itself, or by its gradient in h or in W.
        assert f": {name}[" in message or f"the product's {name})" in message


def lengthen(arrays, position, signature):
    """The arrays with the axis at a position of the signature one longer, and its name."""
    name, axis, _ = signature.dimensions[position]
    arrays = dict(arrays)
    arrays[name] = np.concatenate([arrays[name], np.take(arrays[name], [0], axis)], axis)
    return arrays, f"{name}.shape[{axis}]"


DISAGREEMENTS = [
    (problem, signature, one, other)
    for problem, signature in (("gemv", GEMV), ("outer", OUTER), ("dot", DOT))
    for one, other in signature.equal_sizes
]


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize(("problem", "signature", "one", "other"), DISAGREEMENTS)
def test_sizes_that_disagree(mode, problem, signature, one, other):
    arrays = getattr(Draw(SIZES, 0, "float32"), problem)()
    wrong, name = lengthen(arrays, other, signature)
    with pytest.raises(ValueError, match="must be equal") as error:
        compiled(mode, problem, CONTIGUOUS, "float32")(*wrong.values())
    owner, axis, _ = signature.dimensions[one]
    size = arrays[owner].shape[axis]
    assert f"{owner}.shape[{axis}] = {size} but {name} = {size + 1}" in str(error.value)
    # With the shapes known, the graph is not even built.
    with pytest.raises(ValueError, match="must be equal") as error:
        PROBLEMS[problem][0](*wrong.values())
    assert name in str(error.value)


@pytest.mark.parametrize("mode", ALL_MODES)
def test_a_batch_of_one_is_not_stretched(mode):
    arrays = Draw(SIZES, 0, "float32").gemv()
    arrays["h"] = arrays["h"][:1]
    with pytest.raises(ValueError, match=r"h\.shape\[0\] = 1 but o\.shape\[0\] = 7"):
        compiled(mode, "gemv", CONTIGUOUS, "float32")(*arrays.values())


LARGE_WINDOWS = [(2**30, 2**4, 2**2), (1, 2**32, 1), (2, 1, 2**31), (1, 2**32 - 1, 2**32 - 1)]


@pytest.mark.parametrize("windows", LARGE_WINDOWS)
@pytest.mark.parametrize("mode", MODES)
def test_more_rows_than_can_be_numbered(mode, windows):
    """The arrays hold nothing, or one element again and again, so they take no memory."""
    batch, iWin, oWin = windows
    index = np.zeros((1, 1), "int64")
    arrays = {
        "o": np.empty((batch, oWin, 0), "float32"),
        "W": np.empty((1, 1, 0, 0), "float32"),
        "h": np.empty((batch, iWin, 0), "float32"),
        "inputIdx": np.broadcast_to(index, (batch, iWin)),
        "outputIdx": np.broadcast_to(index, (batch, oWin)),
    }
    with pytest.raises(OverflowError, match="use a smaller batch"):
        compiled(mode, "gemv", CONTIGUOUS, "float32")(*arrays.values())


@pytest.mark.parametrize("mode", MODES)
def test_no_block_to_name(mode):
    arrays = Draw(Sizes(1, 1, 2, 2, 1, 1, 1), 0, "float32").gemv()
    arrays["W"] = np.zeros((1, 0, 2, 2), "float32")
    with pytest.raises(IndexError, match=r"outputIdx\[0, 0\] = .*W\.shape\[1\] = 0"):
        compiled(mode, "gemv", CONTIGUOUS, "float32")(*arrays.values())


@pytest.mark.parametrize("dtype", ["bool", "float32", "complex64"])
@pytest.mark.parametrize(
    ("build", "problem", "name"),
    [
        (sparse_block_gemv, "gemv", "inputIdx"),
        (sparse_block_gemv, "gemv", "outputIdx"),
        (sparse_block_outer, "outer", "xIdx"),
        (sparse_block_outer, "outer", "yIdx"),
        (sparse_block_dot, "dot", "inputIdx"),
        (sparse_block_dot, "dot", "outputIdx"),
    ],
)
def test_indices_that_are_no_integers(build, problem, name, dtype):
    arrays = getattr(Draw(SIZES, 0, "float32"), problem)()
    arrays[name] = arrays[name].astype(dtype)
    with pytest.raises(TypeError, match=rf"{name} has dtype {dtype}; .* must be integers.*astype"):
        build(*arrays.values())


@pytest.mark.parametrize(
    ("build", "problem"),
    [(sparse_block_gemv, "gemv"), (sparse_block_outer, "outer"), (sparse_block_dot, "dot")],
)
def test_wrong_number_of_dimensions(build, problem):
    arrays = getattr(Draw(SIZES, 0, "float32"), problem)()
    for name, array in arrays.items():
        wrong = {**arrays, name: np.zeros((1,) * 5, array.dtype)}
        with pytest.raises(TypeError, match=f"{name} has 5 dimensions; expected {array.ndim}"):
            build(*wrong.values())


def test_two_dimensional_weights():
    arrays = Draw(SIZES, 0, "float32").dot()
    arrays["W"] = arrays["W"][0, 0]
    with pytest.raises(TypeError, match=r"W has 2 .* \(iBlocks, oBlocks, iSize, oSize\)"):
        sparse_block_dot(*arrays.values())


def test_one_example_takes_one_dimensional_indices():
    arrays = Draw(SIZES, 0, "float32").dot()
    arrays["h"] = arrays["h"][0]
    with pytest.raises(TypeError, match="inputIdx has 2 dimensions, but a 2-D h is one example"):
        sparse_block_dot(*arrays.values())


@pytest.mark.parametrize(
    ("op", "problem", "name"), [(SparseBlockGemv, "gemv", "h"), (SparseBlockOuter, "outer", "y")]
)
def test_in_place_that_would_need_a_cast(op, problem, name):
    arrays = getattr(Draw(SIZES, 0, "float32"), problem)()
    arrays[name] = arrays[name].astype("float64")
    assert op()(*arrays.values()).dtype == "float64"
    with pytest.raises(TypeError, match=r"o has dtype float32 .* float64: .*in place.*Cast"):
        op(inplace=True)(*arrays.values())


@pytest.mark.parametrize(
    ("build", "problem"), [(sparse_block_gemv, "gemv"), (sparse_block_dot, "dot")]
)
def test_sparse_arguments_are_refused(build, problem):
    arrays = getattr(Draw(SIZES, 0, "float32"), problem)()
    x = pytensor.sparse.csr_matrix("x")
    with pytest.raises(TypeError, match=r"h is a .*; expected a dense tensor"):
        build(**{**arrays, "h": x})


NO_TENSORS = {
    "None": None,
    "a SciPy matrix": csr_matrix(np.ones((3, 4))),
    "a ragged list": [[0, 1], [0]],
    "of objects": np.array([[None, 1]], object),
    "of words": [["one", "two"]],
    "of another byte order": np.ones((3, 4)).astype(">f8"),
    "with a mask": np.ma.masked_equal(np.ones((3, 4)), 0),
    "a buffer": memoryview(b"abc"),
    "a dict": {"a": 1},
}


@pytest.mark.parametrize(
    ("build", "problem"),
    [(sparse_block_gemv, "gemv"), (sparse_block_outer, "outer"), (sparse_block_dot, "dot")],
)
@pytest.mark.parametrize("kind", NO_TENSORS)
def test_arguments_that_are_no_tensors(build, problem, kind):
    arrays = getattr(Draw(SIZES, 0, "float32"), problem)()
    optional = {"outer": ["alpha"], "dot": ["b"]}.get(problem, []) if kind == "None" else []
    for name in set(arrays) - set(optional):
        with pytest.raises(TypeError, match=rf": {name} is .*, of which no tensor .* Expected"):
            build(**{**arrays, name: NO_TENSORS[kind]})


def test_a_scale_that_would_lose_its_fraction():
    arrays = Draw(SIZES, 0, "int64").outer()
    arrays["alpha"] = 0.5
    with pytest.raises(TypeError, match=r"alpha has dtype float.* int64.*Cast the blocks"):
        sparse_block_outer(*arrays.values())
    arrays["alpha"] = 2
    assert sparse_block_outer(*arrays.values()).dtype == "int64"


def test_a_complex_scale_of_real_blocks():
    arrays = Draw(SIZES, 0, "float32").outer()
    arrays["alpha"] = np.complex64(1j)
    with pytest.raises(TypeError, match="complex"):
        sparse_block_outer(*arrays.values())


@pytest.mark.parametrize(
    ("folding", "value"), list(product([True, False], [4, -5])), ids=lambda x: str(x)
)
def test_a_constant_index_is_told_when_it_runs(folding, value, capsys):
    """Not in the midst of rewriting, where PyTensor would print it as a failure of its own."""
    arrays = Draw(SIZES, 0, "float32").dot()
    arrays["outputIdx"][-1, -1] = value
    values = symbols(arrays)
    names = ("W", "h", "inputIdx", "b")
    given = {name: pt.as_tensor(arrays[name]) if folding else values[name] for name in names}
    index = pt.as_tensor(arrays["outputIdx"]) + (0 if folding else values["outputIdx"] * 0)
    out = sparse_block_dot(*given.values(), index)
    inputs = [] if folding else list(values.values())
    function = pytensor.function(inputs, out)
    with pytest.raises(IndexError, match="SparseBlockGemv: outputIdx"):
        function(*(arrays.values() if not folding else []))
    assert "Rewrite failure" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["inputIdx", "outputIdx"])
def test_a_constant_index_into_a_known_number_of_blocks(name):
    arrays = Draw(SIZES, 0, "float32").dot()
    arrays[name][-1, -1] = 100
    with pytest.raises(IndexError, match=rf"sparse_block_dot: {name}\[6, .\] = 100 .*W\.shape"):
        sparse_block_dot(*{**symbols(arrays, True), name: arrays[name]}.values())
