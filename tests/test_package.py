"""What is installed, and what importing it costs."""

import importlib
import pickle
import shutil
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path
from urllib.parse import unquote

import pytest

import blocksparse_ops

BACKENDS_LOADED = "print({'numba', 'jax', 'torch', 'mlx'} & set(sys.modules))"


def test_version_stands_in_one_place():
    assert metadata.version("blocksparse_ops") == blocksparse_ops.__version__


def test_badges_tell_what_is_required():
    readme = Path(__file__).parents[1] / "README.md"
    shown = unquote(readme.read_text()).replace("_", " ").replace("--", "-")
    about = metadata.metadata("blocksparse_ops")
    license = about.get("License-Expression") or about["License"]
    (pytensor,) = (r for r in about.get_all("Requires-Dist") if r.startswith("pytensor"))
    assert f"Python-≥ {about['Requires-Python'].removeprefix('>=')}-blue" in shown
    assert f"License-{license}-blue" in shown
    assert {"<4", ">=3.0.7"} == set(pytensor.removeprefix("pytensor").split(","))
    assert "PyTensor-≥ 3.0.7, < 4-blue" in shown
    assert "Python 3.11 with\nPyTensor 3.0.7, the oldest" in readme.read_text()


@pytest.mark.parametrize(
    "path", ["py.typed", "kernels/c/gemv.hpp", "kernels/numba/gemv.py", "link/numba.py"]
)
def test_files_are_installed(path):
    assert resources.files("blocksparse_ops").joinpath(path).is_file()


def test_rewrites_are_a_part_of_the_package():
    assert blocksparse_ops.rewrites.__name__ == "blocksparse_ops.rewrites"


@pytest.mark.parametrize("module", ["blocksparse_ops", "blocksparse_ops.rewrites"])
def test_importing_loads_no_backend(module):
    code = f"import sys, {module}; {BACKENDS_LOADED}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("backend", ["jax", "pytorch", "mlx"])
def test_an_unpickled_op_loads_no_library(backend):
    """PyTensor's cache of compiled C unpickles what another process has pickled."""
    pytest.importorskip({"pytorch": "torch"}.get(backend, backend))
    importlib.import_module(f"blocksparse_ops.link.{backend}")
    op = pickle.dumps(blocksparse_ops.sparse_block_gemv)
    code = f"import sys, pickle; pickle.loads({op!r}); {BACKENDS_LOADED}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "torch", "mlx"} & set(eval(run.stdout))


def test_a_checkout_that_is_not_installed_says_so(tmp_path):
    package = Path(blocksparse_ops.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("rewrites"))
    # Without what an installation adds to the ways of finding a module.
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f)]\n"
        "import blocksparse_ops"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "when the package is installed. Run `python -m pip install -e .`" in run.stderr


def test_importing_twice_is_harmless():
    """As a notebook's reload does."""
    code = (
        "import importlib, blocksparse_ops as ops, blocksparse_ops.link.lazy as lazy\n"
        "import blocksparse_ops.rewrites.inplace as inplace\n"
        "for module in (inplace, lazy, ops.rewrites, ops): importlib.reload(module)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
