# ruff: noqa: T201
"""Single changes in kernels, rewrites and ops, each of which some test must notice.

`python tests/mutants.py blocksparse_ops/kernels/c --count 100` draws that many changes in these
files, makes each in a copy of the repository, and runs what is relevant to it: the driver of the
C++ kernels, the fuzz of the Numba kernels, tests of the same name, or those that the table here
has. A change that all of it survives is printed as ALIVE: it lacks a test, or changes nothing.
One takes half a minute.
"""

import argparse
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tokenize
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = ("blocksparse_ops", "rewrites", "tests", "docs", "examples", "benchmarks", "setup.cfg",
          "pyproject.toml", "README.md")  # fmt: skip
SECONDS = 400

SWAPS = {
    "+": "-", "-": "+", "*": "+", "//": "*", "/": "*", "%": "*", "<": "<=", "<=": "<",
    ">": ">=", ">=": ">", "==": "!=", "!=": "==", "and": "or", "or": "and", "&&": "||",
    "||": "&&", "&": "|", "|": "&", "True": "False", "False": "True", "true": "false",
    "false": "true", "min": "max", "max": "min", "std::min": "std::max", "std::max": "std::min",
    "not": "", "break": "pass", "+=": "-=", "-=": "+=",
}  # fmt: skip
# With spaces around: others belong to templates, pointers and references.
CPP = re.compile(
    r"(?<= )(?:\+=|-=|[+\-*/%<>]|<=|>=|==|!=|&&|\|\|)(?= )"
    r"|\btrue\b|\bfalse\b|\bstd::min\b|\bstd::max\b|(?<![\w.])\d+(?![\w.'])"
)
CPP_SILENT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"|^\s*#[^\n]*', re.S | re.M)

# What is relevant besides tests of the same name; for rewrites the first stands for all others.
RANDOM_GRAPHS = ["tests/random_graphs.py", "--seconds", "200", "--cases", "40"]
TESTS = {
    "rewrites": ["test_rewrites", "test_unknown_sizes", "test_steps"],
    "update": ["test_steps"],
    "linear": ["test_steps"],
    "inplace": ["test_steps"],
    "part": ["test_steps"],
    "bias": ["test_take", "test_graph"],
    "bsr": ["test_pattern"],
    "norm": ["test_steps", "test_gradient"],
    "step": ["test_updates"],
    "start": ["test_direct"],
    "order": ["test_all_or_nothing", "test_rewrites"],
    "checks": ["test_all_or_nothing", "test_rewrites"],
    "sizes": ["test_jax"],
    "match": ["test_gathered"],
    "gathering": ["test_gathered"],
    "gathered_gradient": ["test_gathered"],
    "gathered_einsum": ["test_gathered"],
    "ops": ["test_graph", "test_derivatives", "test_errors"],
    "base": ["test_graph", "test_derivatives", "test_errors"],
    "grads": ["test_graph", "test_derivatives", "test_updates"],
    "signature": ["test_errors", "test_graph", "test_padding"],
    "arguments": ["test_errors", "test_graph", "test_padding"],
    "reference": ["test_values", "test_padding"],
    "zeros": ["test_graph", "test_unknown_sizes"],
    "block_gradient": ["test_gradient"],
    "dot": ["test_graph", "test_bias", "test_errors"],
    "update_blocks": ["test_updates"],
    "source": ["test_c_sources", "test_direct"],
    "extension": ["test_c_sources"],
    "tiles": ["test_jax", "test_pytorch"],
    "jax_gathered": ["test_jax"],
    "jax_steps": ["test_jax"],
    "traced": ["test_jax"],
    "lazy": ["test_package", "test_jax"],
}

# Kernels that neither the fuzz nor what is relevant to all of them calls.
TESTS_OF_NUMBA = {"threads": ["threads"], "update_blocks": ["updates"]}


class Mutant(NamedTuple):
    """A change of the text from `start` to `end` of a file."""

    path: Path
    start: int
    end: int
    new: str

    def apply(self, text):
        return text[: self.start] + self.new + text[self.end :]

    def describe(self, text):
        line = text.count("\n", 0, self.start) + 1
        [shown] = text.splitlines()[line - 1 : line]
        change = f"{text[self.start : self.end]} -> {self.new or 'nothing'}"
        return f"{self.path}:{line}: {change}: {shown.strip()}"


def changed(token):
    return str(int(token) + 1) if token.isdigit() else SWAPS.get(token)


def mutants_of_cpp(path, text):
    code = CPP_SILENT.sub(lambda match: " " * len(match[0]), text)
    for match in CPP.finditer(code):
        yield Mutant(path, *match.span(), changed(match[0]))


def mutants_of_python(path, text):
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    in_signature = False
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.string in ("def", "import", "from", "class"):
            in_signature = True
        elif token.type in (tokenize.NEWLINE, tokenize.INDENT):
            in_signature = False
        of_interest = token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER)
        if in_signature or not of_interest or changed(token.string) is None:
            continue
        span = (starts[row - 1] + column for row, column in (token.start, token.end))
        yield Mutant(path, *span, changed(token.string))


def mutants_of(path):
    text = (ROOT / path).read_text()
    return list((mutants_of_python if path.suffix == ".py" else mutants_of_cpp)(path, text))


def commands_for(path, python, scratch):
    """What must notice a change of a file, the quickest first."""
    pytest = [python, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    if path.stem in ("numpy", "threads") and path.suffix == ".hpp":
        files = [f"tests/test_{name}.py" for name in ("values", "direct", "threads")]
        return [[*pytest, *files, "-k", "CVM or TestC"]]
    if path.suffix == ".hpp":
        driver = scratch / "driver"
        includes = f"-I{scratch}/tree/blocksparse_ops/kernels/c"
        flags = ["-std=c++17", "-O0", "-g1", "-march=native", "-pthread",
                 "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]  # fmt: skip
        return [
            ["g++", *flags, includes, "tests/kernel_driver.cpp", "-o", str(driver)],
            [str(driver), "--problems", "800"],
        ]
    if "numba" in path.parts:
        fuzz = [python, "tests/numba_fuzz.py", "--problems", "400", "--seconds", "200"]
        names = ["values", "errors", "gradient", *TESTS_OF_NUMBA.get(path.stem, [])]
        files = [f"tests/test_{name}.py" for name in names]
        return [fuzz, [*pytest, *files, "-k", "NUMBA or Numba or gradient"]]
    same = f"test_{path.stem}"
    folder = TESTS.get(path.parent.name, [])
    names = dict.fromkeys([same, *TESTS.get(path.stem, []), *folder])
    files = [f"tests/{name}.py" for name in names if (ROOT / "tests" / f"{name}.py").exists()]
    commands = [[*pytest, *files, "-k", "not NUMBA and not PYTORCH"]] if files else []
    return [*commands, [python, *RANDOM_GRAPHS]] if path.parent.name == "rewrites" else commands


def copy_tree(to):
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = ["__pycache__", *["rewrites"] * (name == "blocksparse_ops")]
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns(*ignored))
        elif source.exists():
            shutil.copy(source, to / name)
    # The package as it is installed, of which this folder is a part.
    (to / "blocksparse_ops" / "rewrites").symlink_to("../rewrites")


def outcome(mutant, scratch):
    """Which command noticed a change, or None."""
    tree = scratch / "tree"
    target = tree / mutant.path
    text = target.read_text()
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tree}:{tree / 'tests'}",
        "PYTENSOR_FLAGS": f"base_compiledir={scratch / 'compiled'}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        target.write_text(mutant.apply(text))
        for number, command in enumerate(commands_for(mutant.path, sys.executable, scratch)):
            try:
                run = subprocess.run(
                    command, cwd=tree, env=environment, capture_output=True, timeout=SECONDS
                )
            except subprocess.TimeoutExpired:
                return "time"
            if run.returncode:
                return "compiler" if command[0] == "g++" else f"command {number}"
    finally:
        target.write_text(text)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="files or folders to change")
    parser.add_argument("--count", type=int, default=20, help="how many changes")
    parser.add_argument("--seed", type=int, default=0, help="of which are drawn")
    parser.add_argument("--seconds", type=float, default=1e9, help="how long to go on")
    options = parser.parse_args()
    files = [
        file.relative_to(ROOT)
        for path in map(Path.resolve, options.paths)
        for file in (sorted(path.glob("*")) if path.is_dir() else [path])
        if file.suffix in (".py", ".hpp") and file.name != "__init__.py"
    ]
    # As many of each file, as far as it has so many.
    rng = random.Random(options.seed)
    drawn = {file: rng.sample(all_of := mutants_of(file), len(all_of)) for file in files}
    rounds = range(options.count)
    mutants = [drawn[file][k] for k in rounds for file in files if k < len(drawn[file])]
    run_all(mutants[: options.count], options.seconds)


def run_all(mutants, seconds):
    end, counts = time.monotonic() + seconds, {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        copy_tree(scratch / "tree")
        for mutant in mutants:
            if time.monotonic() > end:
                break
            found = outcome(mutant, scratch) or "ALIVE"
            counts[found] = counts.get(found, 0) + 1
            print(f"{found}: {mutant.describe((ROOT / mutant.path).read_text())}", flush=True)
    print(counts)


if __name__ == "__main__":
    main()
