"""What the doctests of the site leave: its picture, and the width of its prose."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_the_picture_is_as_its_script_draws_it():
    drawing = runpy.run_path(str(DOCS / "draw_product.py"))["drawing"]
    assert (DOCS / "product.svg").read_text() == drawing()


@pytest.mark.parametrize(
    "path", [*DOCS.glob("*.md"), *DOCS.parent.glob("*.md")], ids=lambda p: p.name
)
def test_prose_is_as_narrow_as_code(path):
    in_code, wide = False, []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        in_code ^= line.startswith("```")
        if len(line) > 100 and not in_code and not line.startswith("|"):
            wide.append(number)
    assert not wide
