"""What the doctests of the site leave: its pictures, and the width of its prose."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_pictures_are_as_their_script_draws_them():
    for name, picture in runpy.run_path(str(DOCS / "draw_pictures.py"))["PICTURES"].items():
        assert (DOCS / name).read_text() == picture


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
