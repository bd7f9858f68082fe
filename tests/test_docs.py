"""The site's picture is what its script draws."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_picture_is_as_its_script_draws_it():
    drawing = runpy.run_path(str(DOCS / "draw_product.py"))["drawing"]
    assert (DOCS / "product.svg").read_text() == drawing()
