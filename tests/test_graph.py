"""How the ops behave as nodes of a graph: shapes, equality, pickles, vectorisation, memory."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import oracle
import pytensor
import pytensor.tensor as pt
import pytest
from cases import (
    ALL_MODES,
    MODES,
    Draw,
    Sizes,
    array_modes,
    in_python,
    needs_compiler,
    symbols,
)
from pytensor.graph.replace import vectorize_graph
from pytensor.tensor.blockwise import Blockwise

import blocksparse_ops
from blocksparse_ops import (
    SparseBlockGemv,
    SparseBlockOuter,
    sparse_block_dot,
    sparse_block_gemv,
    sparse_block_gemv_inplace,
    sparse_block_outer,
    sparse_block_outer_inplace,
)
from blocksparse_ops.bias import CheckedColumns
from blocksparse_ops.gradient import SparseBlockGradient
from blocksparse_ops.part import SparseBlockOuterInPart
from blocksparse_ops.zeros import BlockFull, BlockZeros, full, zeros

SIZES = Sizes(iBlocks=3, oBlocks=4, iSize=5, oSize=6, iWin=2, oWin=3, batch=7)

OPS = [
    sparse_block_gemv,
    sparse_block_gemv_inplace,
    sparse_block_outer,
    sparse_block_outer_inplace,
    SparseBlockGemv(padding_idx=-1),
    SparseBlockGemv(inplace=True, padding_idx=7),
    SparseBlockOuter(padding_idx=np.int8(-1)),
    SparseBlockGradient(),
    SparseBlockGradient(padding_idx=-1),
    SparseBlockOuterInPart(padding_idx=0),
]


def ops_in(function):
    return [node.op for node in function.maker.fgraph.toposort()]


def count(function, *types):
    return sum(isinstance(op, types) for op in ops_in(function))


def known(array, letters, unknown):
    """A variable with the shape of `array`, but for the letters that are unknown."""
    shape = [None if c in unknown else n for c, n in zip(letters, array.shape, strict=True)]
    return pt.tensor(dtype=array.dtype, shape=shape)


@pytest.mark.parametrize("op", OPS, ids=str)
def test_equal_by_props_and_built_from_them(op):
    twin = type(op)(**{name: getattr(op, name) for name in op.__props__})
    for other in (twin, pickle.loads(pickle.dumps(op)), copy.copy(op), copy.deepcopy(op)):
        assert other == op
        assert hash(other) == hash(op)
        assert getattr(other, "destroy_map", {}) == getattr(op, "destroy_map", {})
        assert getattr(other, "view_map", {}) == getattr(op, "view_map", {})
    assert sum(op == other for other in OPS) == 1


def test_in_place_twins_declare_what_they_destroy():
    for op in (SparseBlockGemv, SparseBlockOuter):
        assert op(inplace=True).destroy_map == {0: [0]}
        assert op().destroy_map == {}


def test_without_padding_an_op_is_as_it_was():
    assert SparseBlockGemv(padding_idx=None) == sparse_block_gemv
    assert SparseBlockOuter(inplace=True) == sparse_block_outer_inplace
    assert SparseBlockGemv.__props__ == SparseBlockOuter.__props__ == ("inplace", "padding_idx")


@pytest.mark.parametrize(
    ("build", "draw"), [(sparse_block_gemv, Draw.gemv), (sparse_block_outer, Draw.outer)]
)
def test_static_shape_is_merged_from_all_inputs(build, draw):
    arrays = draw(Draw(SIZES, 0, "float64"))
    signature = build.signature
    result = signature.names[0]
    expected = arrays[result].shape
    for name in signature.names[1:]:
        shared = set(signature.axes[name]) & set(signature.axes[result])
        inputs = [
            known(array, signature.axes[k], "" if k == name else "nijvwpq")
            for k, array in arrays.items()
        ]
        assert build(*inputs).type.shape == tuple(
            size if letter in shared else None
            for letter, size in zip(signature.axes[result], expected, strict=True)
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("build", "draw"),
    [
        (sparse_block_gemv, Draw.gemv),
        (sparse_block_outer, Draw.outer),
        (sparse_block_dot, Draw.dot),
    ],
)
def test_shape_compiles_without_the_op(mode, build, draw):
    arrays = draw(Draw(SIZES, 0, "float64"))
    inputs = symbols(arrays)
    out = build(*inputs.values())
    function = pytensor.function(
        list(inputs.values()), out.shape, mode=mode, on_unused_input="ignore"
    )
    if mode != "FAST_COMPILE":
        assert count(function, SparseBlockGemv, SparseBlockOuter) == 0
    np.testing.assert_array_equal(function(*arrays.values()), build(*arrays.values()).eval().shape)


@pytest.mark.parametrize("as_tensor", [np.asarray, lambda x: np.asarray(x).tolist()])
def test_dot_takes_whatever_becomes_a_tensor(as_tensor):
    arrays = Draw(SIZES, 0, "float64").dot()
    actual = sparse_block_dot(**{k: as_tensor(a) for k, a in arrays.items()}).eval()
    oracle.assert_within_bound(actual, oracle.dot(**arrays))


@pytest.mark.parametrize("mode", ALL_MODES)
def test_dot_without_bias(mode):
    arrays = Draw(SIZES, 0, "float32").dot()
    inputs = symbols(arrays)
    b = inputs.pop("b")
    function = pytensor.function(
        list(inputs.values()), sparse_block_dot(b=None, **inputs), mode=mode
    )
    zeros = np.zeros_like(arrays.pop("b"))
    actual = np.asarray(function(*arrays.values()))
    assert actual.dtype == b.dtype
    oracle.assert_within_bound(actual, oracle.dot(b=zeros, **arrays))


def test_dot_of_one_example():
    arrays = Draw(SIZES, 0, "float64").dot()
    one = {k: a[0] if k in ("h", "inputIdx", "outputIdx") else a for k, a in arrays.items()}
    actual = sparse_block_dot(**one).eval()
    assert actual.shape == (1, SIZES.oWin, SIZES.oSize)
    np.testing.assert_allclose(actual[0], sparse_block_dot(**arrays).eval()[0], rtol=1e-12)


def test_dtypes_are_upcast_as_those_of_a_dot():
    for W, h in (("float32", "float64"), ("int8", "float32"), ("int64", "float32")):
        arrays = Draw(SIZES, 0, "float32").gemv()
        arrays["o"], arrays["W"] = arrays["o"].astype("int8"), arrays["W"].astype(W)
        arrays["h"] = arrays["h"].astype(h)
        plain = pt.dot(pt.matrix(dtype=W), pt.matrix(dtype=h))
        assert sparse_block_gemv(**arrays).dtype == plain.dtype


@pytest.mark.parametrize("is_known", [True, False])
def test_what_a_bias_adds_to_a_graph(is_known):
    """Two products, one of them of b; sizes are compared where they are not known."""
    arrays = Draw(SIZES, 0, "float64").dot()
    inputs = symbols(arrays, is_known)
    function = pytensor.function(
        list(inputs.values()), sparse_block_dot(**inputs), mode=in_python("NUMBA")
    )
    assert count(function, SparseBlockGemv) == 2
    assert count(function, CheckedColumns) == (not is_known)
    assert count(function, BlockFull) == (0 if is_known else 2)
    assert not any("Subtensor" in str(op) for op in ops_in(function))


@pytest.mark.parametrize(("of", "axis"), [("W", 1), ("W", 3), ("b", 0), ("b", 1)])
def test_a_bias_is_compared_where_one_size_is_not_known(of, axis):
    inputs = symbols(Draw(SIZES, 0, "float64").dot(), is_static=True)
    shape = list(inputs[of].type.shape)
    shape[axis] = None
    inputs[of] = pt.tensor(dtype="float64", shape=shape)
    function = pytensor.function(
        list(inputs.values()), sparse_block_dot(**inputs), mode=in_python("CVM")
    )
    assert count(function, CheckedColumns) == 1


def test_an_empty_list_is_an_empty_index():
    arrays = Draw(Sizes(3, 4, 5, 6, 0, 3, 2), 0, "float64").dot()
    arrays["inputIdx"] = [[], []]
    expected = arrays["b"][arrays["outputIdx"]]
    np.testing.assert_array_equal(sparse_block_dot(**arrays).eval(), expected)


@needs_compiler
def test_debug_mode_on_dot_and_its_gradients():
    arrays = Draw(SIZES, 0, "float64").dot()
    inputs = symbols(arrays)
    out = sparse_block_dot(**inputs)
    cotangent = out.type("cotangent")  # without a cost, which is of PyTensor's ops alone
    gradients = pt.grad(
        None, [inputs[name] for name in ("W", "h", "b")], known_grads={out: cotangent}
    )
    function = pytensor.function(
        [*inputs.values(), cotangent], [out, *gradients], mode="DEBUG_MODE"
    )
    function(*arrays.values(), oracle.dot(**arrays)[0].astype("float64"))


@pytest.mark.parametrize("allocate", [zeros, lambda sizes, dtype: full(sizes, 1.0, dtype)])
def test_what_is_known_of_an_allocation(allocate):
    x, n = pt.tensor("x", dtype="float64", shape=(3, None)), pt.lscalar("n")
    allocated = allocate((2, n, x.shape[0], x.shape[1], x.shape[0] * 2), "float32")
    assert allocated.type == pt.TensorType("float32", (2, None, 3, None, 6))
    with pytest.raises(TypeError, match="integers"):
        allocate((2, pt.scalar("length", dtype="float64")), "float32")


@pytest.mark.parametrize("iBlocks", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_zeros_of_a_gradient_stay_an_allocation(mode, iBlocks):
    """Even with all shapes known; as a constant they would be kept, and copied at each call."""
    arrays = Draw(Sizes(iBlocks, 4, 5, 6, 1, 3, 7), 0, "float64").dot()
    inputs = {k: pt.tensor(k, dtype=a.dtype, shape=a.shape) for k, a in arrays.items()}
    gradient = pt.grad((sparse_block_dot(**inputs) ** 2).sum(), inputs["W"])
    function = pytensor.function(list(inputs.values()), gradient, mode=mode)
    assert count(function, BlockZeros) > 0
    constants = [
        v for v in function.maker.fgraph.variables if isinstance(v, pytensor.graph.Constant)
    ]
    assert all(v.data.size < arrays["W"].size for v in constants if hasattr(v.data, "size"))
    if mode != "FAST_COMPILE":
        (outer,) = [op for op in ops_in(function) if isinstance(op, SparseBlockOuter)]
        assert outer.inplace


OVER_WEIGHTS = [
    ("W",),
    ("W", "h"),
    ("W", "inputIdx"),
    ("W", "outputIdx"),
    ("o", "W", "h", "inputIdx", "outputIdx"),
]
OF_OUTER = [
    ("o",),
    ("x", "yIdx"),
    ("o", "xIdx"),
    ("alpha",),
    ("o", "x", "y", "xIdx", "yIdx", "alpha"),
]

# The op, its problem, the axes that are added, to which arguments, and whether Blockwise has them.
VECTORIZED = {
    "gemv folds into its batch": (
        sparse_block_gemv,
        Draw.gemv,
        (2, 3),
        [
            ("h",),
            ("o",),
            ("inputIdx", "outputIdx"),
            ("o", "h"),
            ("h", "outputIdx"),
            ("o", "h", "inputIdx", "outputIdx"),
        ],
        False,
    ),
    "gemv over weights": (sparse_block_gemv, Draw.gemv, (2,), OVER_WEIGHTS, True),
    "gemv over weights, padded": (
        SparseBlockGemv(padding_idx=1),
        Draw.gemv,
        (2,),
        OVER_WEIGHTS,
        True,
    ),
    "outer": (sparse_block_outer, Draw.outer, (2,), OF_OUTER, True),
    "outer, padded": (SparseBlockOuter(padding_idx=1), Draw.outer, (2,), OF_OUTER, True),
    "dot": (sparse_block_dot, Draw.dot, (2,), [("h",), ("h", "inputIdx", "outputIdx")], False),
}


def is_in_blockwise(variable):
    nodes = [v.owner for v in pytensor.graph.ancestors([variable]) if v.owner]
    cores = [node.op.core_op for node in nodes if isinstance(node.op, Blockwise)]
    return any(isinstance(op, SparseBlockGemv | SparseBlockOuter) for op in cores)


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("name", VECTORIZED)
def test_vectorize(name, mode):
    """Vectorised calls, in one function, beside a call for each new batch item."""
    build, draw, new_shape, combinations, in_blockwise = VECTORIZED[name]
    draws = [draw(Draw(SIZES, seed, "float64")) for seed in range(np.prod(new_shape))]
    arrays = draws[0]
    stacked = {
        name: np.stack([draw[name] for draw in draws]).reshape(*new_shape, *np.shape(array))
        for name, array in arrays.items()
    }
    # PyTensor 3.0 reshapes to known shapes alone in JAX.
    is_static = mode == "JAX"
    inputs, batched = symbols(arrays, is_static), symbols(stacked, is_static)
    out = build(*inputs.values())
    outputs = [
        vectorize_graph(out, {inputs[name]: batched[name] for name in names})
        for names in combinations
    ]
    assert all(is_in_blockwise(output) == in_blockwise for output in outputs)
    if not in_blockwise and mode in ("CVM", "NUMBA"):
        # One product of more examples: what is new is the graph, not how the op is compiled.
        mode = in_python(mode)
    function = pytensor.function(
        [*inputs.values(), *batched.values()], outputs, mode=mode, on_unused_input="ignore"
    )
    single = pytensor.function(list(inputs.values()), out, mode="FAST_COMPILE")
    results = function(*arrays.values(), *stacked.values())
    for names, actual in zip(combinations, results, strict=True):
        for item, position in zip(draws, np.ndindex(*new_shape), strict=True):
            one = arrays | {name: item[name] for name in names}
            np.testing.assert_allclose(
                actual[position], single(*one.values()), rtol=1e-12, err_msg=str(names)
            )


def test_vectorize_what_is_the_same_for_all():
    """The rows of a bias stay one product, of the arguments that it had."""
    inputs = symbols(Draw(SIZES, 0, "float64").dot())
    out = sparse_block_dot(**inputs)
    batched = vectorize_graph(out, {inputs["inputIdx"]: pt.ltensor3("inputIdx")})
    indices = [
        v.owner.inputs[4]
        for v in pytensor.graph.ancestors([batched])
        if v.owner and isinstance(v.owner.op, SparseBlockGemv)
    ]
    assert len(indices) == 2
    assert indices.count(inputs["outputIdx"]) == 1


def test_vectorize_gemv_with_nothing_in_it():
    sizes = Sizes(1, 1, 0, 0, 0, 0, 0)
    arrays = Draw(sizes, 0, "float64").gemv()
    h = pt.tensor("h", shape=(0, 0, 0), dtype="float64")
    out = sparse_block_gemv(**{**arrays, "h": h})
    batched = pt.tensor4("h", dtype="float64")
    result = vectorize_graph(out, {h: batched})
    value = result.eval({batched: np.zeros((4, 0, 0, 0))}, mode=in_python("NUMBA"))
    assert value.shape == (4, 0, 0, 0)


# PyTensor's functions for PyTorch cannot be pickled.
PICKLING_MODES = [*MODES, *array_modes("JAX", "MLX")]


def pickled_problem(mode):
    arrays = Draw(SIZES, 0, "float64").gemv()
    inputs = symbols(arrays)
    function = pytensor.function(
        list(inputs.values()), sparse_block_gemv(*inputs.values()), mode=mode
    )
    return function, list(arrays.values()), np.asarray(function(*arrays.values()))


@pytest.mark.parametrize("mode", PICKLING_MODES)
def test_functions_pickle_and_copy(mode):
    function, arrays, expected = pickled_problem(mode)
    for twin in (pickle.loads(pickle.dumps(function)), copy.copy(function), function.copy()):
        np.testing.assert_array_equal(twin(*arrays), expected)


@pytest.mark.parametrize("mode", PICKLING_MODES)
def test_a_function_unpickled_in_a_fresh_process(mode, tmp_path):
    """It is linked without being rewritten, and nothing else has imported us."""
    problem = tmp_path / "problem.pickle"
    problem.write_bytes(pickle.dumps(pickled_problem(mode)))
    code = (
        f"import pickle; function, arrays, expected = pickle.load(open({str(problem)!r}, 'rb'))\n"
        "assert (function(*arrays) == expected).all()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_graphs_pickle_and_clone():
    arrays = Draw(SIZES, 0, "float64").dot()
    inputs = symbols(arrays)
    fgraph = pytensor.graph.FunctionGraph(
        list(inputs.values()), [sparse_block_dot(**inputs)], clone=True
    )
    for twin in (pickle.loads(pickle.dumps(fgraph)), fgraph.clone(), copy.deepcopy(fgraph)):
        assert pytensor.graph.basic.equal_computations(
            twin.outputs, fgraph.outputs, twin.inputs, fgraph.inputs
        )


@pytest.mark.parametrize("problem", ["gemv", "outer"])
@needs_compiler
def test_debug_mode(problem):
    """PyTensor runs C against Python, strides of all kinds, and looks for what is destroyed."""
    arrays = getattr(Draw(SIZES, 0, "float64"), problem)()
    inputs = symbols(arrays)
    build = {"gemv": sparse_block_gemv, "outer": sparse_block_outer}[problem]
    out = build(*inputs.values())
    cotangent = out.type("cotangent")
    o = pytensor.shared(arrays["o"])
    function = pytensor.function(
        [*inputs.values(), cotangent],
        [out, pt.grad(None, list(inputs.values())[1], known_grads={out: cotangent})],
        updates={o: build(o, *list(inputs.values())[1:])},
        mode="DEBUG_MODE",
    )
    function(*arrays.values(), arrays["o"])
    function(*arrays.values(), arrays["o"])


def test_flops_are_told_to_the_profiler():
    shapes = [a.shape for a in Draw(SIZES, 0, "float64").gemv().values()]
    products = SIZES.batch * SIZES.iWin * SIZES.oWin * SIZES.iSize * SIZES.oSize
    assert sparse_block_gemv.flops(shapes, [shapes[0]]) == 2 * products
    shapes = [np.shape(a) for a in Draw(SIZES, 0, "float64").outer().values()]
    assert sparse_block_outer.flops(shapes, [shapes[0]]) == 2 * products


def test_public_names():
    assert sorted(blocksparse_ops.__all__) == [
        "BlockGradient",
        "SparseBlockGemv",
        "SparseBlockOuter",
        "block_gradient",
        "explain",
        "h_softmax",
        "log_h_softmax",
        "sparse_block_dot",
        "sparse_block_gemv",
        "sparse_block_gemv_inplace",
        "sparse_block_outer",
        "sparse_block_outer_inplace",
        "sparse_block_take",
    ]
    assert sparse_block_gemv == SparseBlockGemv()
    assert sparse_block_outer_inplace == SparseBlockOuter(inplace=True)
