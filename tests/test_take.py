"""Rows of a table: values, what is refused, derivatives, and a step that touches what is in use."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from cases import ALL_MODES, ARRAY_MODES, MODES, in_python
from pytensor.graph.replace import vectorize_graph

from blocksparse_ops import SparseBlockOuter, sparse_block_take

ROWS, COLUMNS = 5, 3
TABLE = np.random.default_rng(0).normal(size=(ROWS, COLUMNS))
SHAPES = [(), (4,), (4, 2), (2, 3, 2), (0,), (3, 0)]


def draw_index(shape, dtype="int64"):
    least = 0 if dtype.startswith("u") else -ROWS
    return np.random.default_rng(1).integers(least, ROWS, shape).astype(dtype)


@pytest.mark.parametrize("mode", ALL_MODES)
def test_rows(mode):
    """Of any number of dimensions, in one function; known ones, which JAX needs to reshape."""
    table = pt.dmatrix("table")
    indices = [draw_index(shape) for shape in SHAPES]
    inputs = [pt.tensor(dtype="int64", shape=index.shape) for index in indices]
    outputs = [sparse_block_take(table, index) for index in inputs]
    outputs.append(sparse_block_take(table, inputs[2], padding_idx=int(indices[2][1, 1])))
    function = pytensor.function([table, *inputs], outputs, mode=mode)
    *all_rows, padded = function(TABLE, *indices)
    for rows, index, output in zip(all_rows, indices, outputs[:-1], strict=True):
        np.testing.assert_allclose(rows, TABLE[index], rtol=1e-6)
        assert output.type.ndim == np.ndim(rows)
    is_row = indices[2] != indices[2][1, 1]
    np.testing.assert_allclose(padded, TABLE[indices[2]] * is_row[..., None], rtol=1e-6)


@pytest.mark.parametrize("shape", [(2,), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("mode", ARRAY_MODES)
def test_an_index_of_unknown_shape(mode, shape):
    table = pt.dmatrix("table")
    index = pt.tensor("index", dtype="int64", shape=(None,) * len(shape))
    rows = sparse_block_take(table, index)
    outputs = [rows, pt.grad((rows**2).sum(), table)]
    function = pytensor.function([table, index], outputs, mode=mode)
    expected = pytensor.function([table, index], outputs, mode="FAST_COMPILE")
    arguments = TABLE, draw_index(shape)
    for one, other in zip(function(*arguments), expected(*arguments), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "int8", "int64", "bool", "complex64"])
@pytest.mark.parametrize("index_dtype", ["int8", "uint8", "int32", "uint64"])
def test_dtypes(dtype, index_dtype):
    table, index = (3 * TABLE).astype(dtype), draw_index((4, 2), index_dtype)
    rows = sparse_block_take(table, index)
    assert rows.dtype == dtype
    function = pytensor.function([], rows, mode=in_python("NUMBA"))
    np.testing.assert_array_equal(function(), table[index])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [ROWS, -ROWS - 1])
def test_an_index_out_of_range(mode, value):
    table, index = pt.dmatrix("table"), pt.lvector("index")
    function = pytensor.function([table, index], sparse_block_take(table, index), mode=mode)
    with pytest.raises(IndexError, match=rf"outputIdx\[0, 2\] = {value} is out of range: .* = 5"):
        function(TABLE, [0, 1, value])


@pytest.mark.parametrize("is_constant", [True, False])
def test_windows_without_places(is_constant):
    index = np.zeros((2, 3, 0), int)
    variable = pt.constant(index) if is_constant else pt.ltensor3("index")
    inputs = [] if is_constant else [variable]
    function = pytensor.function(inputs, sparse_block_take(TABLE, variable), mode="FAST_COMPILE")
    assert function(*[index] * len(inputs)).shape == (2, 3, 0, TABLE.shape[1])


def test_what_is_refused_when_the_graph_is_built():
    with pytest.raises(IndexError, match=r"sparse_block_take: index\[1\] = 5 .*table\.shape\[0\]"):
        sparse_block_take(TABLE, [0, ROWS])
    with pytest.raises(TypeError, match=r"index has dtype float64; .* must be integers"):
        sparse_block_take(TABLE, [0.0])
    with pytest.raises(TypeError, match=r"table has 3 dimensions; expected 2"):
        sparse_block_take(TABLE[None], [0])


def loss_of(take, table, index):
    return (take(table, index) ** 3).sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_are_those_of_a_gather(shape):
    table = pt.dmatrix("table")
    index = draw_index(shape)
    results = []
    for take in (sparse_block_take, lambda table, index: table[index]):
        gradient = pt.grad(loss_of(take, table, index), table)
        results += [gradient, pt.grad((gradient**2).sum(), table)]
    function = pytensor.function([table], results, mode=in_python("NUMBA"))
    ours, ours_twice, theirs, theirs_twice = function(TABLE)
    np.testing.assert_allclose(ours, theirs)
    np.testing.assert_allclose(ours_twice, theirs_twice)


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES[1:])
def test_a_step_is_one_outer_in_place(mode, ndim, is_known):
    if ndim != 2:
        mode = in_python(mode)
    index = pt.tensor("index", dtype="int64", shape=(None,) * ndim)
    value = draw_index((2, 3, 2)[:ndim])
    table = pytensor.shared(TABLE, shape=TABLE.shape if is_known else None)
    new = table - 0.1 * pt.grad(loss_of(sparse_block_take, table, index), table)
    expected = pytensor.function([index], new, mode="FAST_COMPILE")(value)
    function = pytensor.function([index], updates=[(table, new)], mode=mode)
    nodes = function.maker.fgraph.toposort()
    (outer,) = (node for node in nodes if isinstance(node.op, SparseBlockOuter))
    assert outer.op.inplace
    assert outer.inputs[0].owner.inputs[0] in function.maker.fgraph.inputs
    storage = table.get_value(borrow=True)
    function(value)
    np.testing.assert_allclose(table.get_value(), expected)
    assert np.shares_memory(storage, table.get_value(borrow=True))


@pytest.mark.parametrize("batched", ["table", "index", "both"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_vectorize(batched, ndim):
    shape = (2, 3, 2)[:ndim]
    table, index = pt.dmatrix("table"), pt.tensor("index", dtype="int64", shape=(None,) * ndim)
    tables, indices = np.stack([TABLE, TABLE + 1]), np.stack([draw_index(shape)] * 2)
    indices[1] = 0
    given, values = {}, [TABLE, draw_index(shape)]
    if batched != "index":
        given[table], values[0] = pt.dtensor3("tables"), tables
    if batched != "table":
        given[index], values[1] = pt.tensor(dtype="int64", shape=(None,) * (ndim + 1)), indices
    out = vectorize_graph(sparse_block_take(table, index), given)
    inputs = [given.get(x, x) for x in (table, index)]
    actual = pytensor.function(inputs, out, mode=in_python("NUMBA"))(*values)
    for k in range(2):
        t = tables[k] if batched != "index" else TABLE
        i = indices[k] if batched != "table" else values[1]
        np.testing.assert_allclose(actual[k], t[i])
