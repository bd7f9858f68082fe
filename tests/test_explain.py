"""What is told of a compiled function: what runs on the ops, and why gathers were left."""

import pytensor
import pytensor.tensor as pt
import pytest
from cases import in_python
from pytensor import ifelse

from blocksparse_ops import explain

x, B, b = pt.dmatrix("x"), pt.dtensor3("B"), pt.dmatrix("b")
i, index = pt.lvector("i"), pt.lmatrix("index")


def told(capsys, outputs, mode="CVM"):
    function = pytensor.function(
        [x, B, b, i, index], outputs, mode=in_python(mode), on_unused_input="ignore"
    )
    explain(function)
    return capsys.readouterr().out


PRODUCTS = {
    "dot": lambda: x[:, None, :] @ B[i],
    "einsum": lambda: pt.einsum("np,npq->nq", x, B[i]),
    "einsum of windows": lambda: pt.einsum("np,nwpq->nwq", x, B[index]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_and_the_line_that_it_is_from(capsys, name):
    text = told(capsys, PRODUCTS[name]())
    [title, line] = text.splitlines()
    assert title == "On the ops:"
    assert line.startswith("  SparseBlockGemv{")
    assert "test_explain.py" in line
    assert f'"{name}"' in line


@pytest.mark.parametrize("name", PRODUCTS)
def test_gradients(capsys, name):
    loss = (PRODUCTS[name]() ** 2).sum()
    lines = told(capsys, pt.grad(loss, [x, B])).splitlines()
    assert sum("SparseBlockGemv" in line for line in lines) == 2
    assert sum("SparseBlockOuter" in line for line in lines) == 1
    assert all("test_explain.py" in line for line in lines[1:])


LEFT = {
    "another use": (lambda: (x[:, None, :] @ B[i]) + (B[i] ** 2).sum(), "CVM", "are used by"),
    "no sum": (lambda: x * b[i], "CVM", "an axis of a block is multiplied and not summed over"),
    "fused": (lambda: (x * b[i]).sum(1), "NUMBA", "PyTensor fuses the gather"),
    "one row": (lambda: x[0] @ B[i], "CVM", "one for all examples"),
    "einsum of each row with each block": (
        lambda: pt.einsum("mp,nwpq->nwmq", x, B[index]),
        "CVM",
        "two axes have the same part in the product",
    ),
    "einsum of a sum": (
        lambda: pt.einsum("np,nwpq->nq", x, B[index]),
        "CVM",
        "blocks are summed, not products of blocks",
    ),
    "integers": (
        lambda: x.astype("int64")[:, None, :] @ B.astype("int64")[i],
        "CVM",
        "the blocks are of dtype int64",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_why_a_gather_was_left(capsys, name):
    build, mode, reason = LEFT[name]
    text = told(capsys, build(), mode)
    assert text.startswith("As written, by gathering:\n  ")
    assert reason in text
    assert "test_explain.py" in text


def test_in_a_loop(capsys):
    out = pytensor.scan(lambda k: x[:, None, :] @ B[i + k], pt.arange(3), return_updates=False)
    assert "SparseBlockGemv" in told(capsys, out)


def test_in_a_branch(capsys):
    chosen = ifelse(x[0, 0], (x[:, None, :] @ B[i]).sum(), B.sum())
    assert "SparseBlockGemv" in told(capsys, chosen, "NUMBA")


def test_nothing_to_tell(capsys):
    text = "Nothing runs on the ops, and no product of gathered blocks was left.\n"
    assert told(capsys, x + b[i]) == text
    assert told(capsys, x @ B[0]) == text
