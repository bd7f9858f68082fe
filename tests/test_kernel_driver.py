r"""The C++ kernels without Python: random problems under sanitizers, by kernel_driver.cpp.

ThreadSanitizer takes too long for the suite. To run it, from the root of the repository:

    g++ -std=c++17 -O1 -g -march=native -pthread -fsanitize=thread -Iblocksparse_ops/kernels/c \
        tests/kernel_driver.cpp -o /tmp/kernel_driver
    TSAN_OPTIONS=halt_on_error=1 setarch -R /tmp/kernel_driver --problems 10000
"""

import os
import platform
import subprocess
from hashlib import sha256
from importlib import resources
from pathlib import Path

import pytest
from cases import needs_compiler
from pytensor import config

from blocksparse_ops.kernels.c import extension

pytestmark = needs_compiler

DRIVER = Path(__file__).with_name("kernel_driver.cpp")
HEADERS = resources.files("blocksparse_ops.kernels.c")

# The width of vectors decides how the kernels cut blocks: 16, 32 and 64 bytes here.
IS_X86 = platform.machine() in ("x86_64", "AMD64")
VECTORS = ["sse2", "avx2", "avx512f"] if IS_X86 else ["native"]

LACKING = 77
PROBE = f'int main() {{ return __builtin_cpu_supports("%s") ? 0 : {LACKING}; }}\n'


def build(path, vectors):
    """Compile under sanitizers, unless it lies where PyTensor keeps what it compiles.

    To optimise would take four times as long.
    """
    command = [config.cxx, *extension.COMPILE_ARGS, "-O0", "-g1", "-pthread", f"-I{HEADERS}"]
    command += [f"-m{vectors}" if IS_X86 else "-march=native"]
    # What is undefined is so at any width, and to look for it doubles the time.
    sanitizers = "address,undefined" if vectors == VECTORS[0] else "address"
    command += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    sources = [path, *path.parent.glob("kernel_*"), *HEADERS.iterdir()]
    about = (command, [source.read_bytes() for source in sources if source.is_file()])
    name = sha256(repr(about).encode()).hexdigest()[:32]
    executable = Path(config.compiledir, f"{path.stem}_{name}")
    if not executable.exists():
        # Compiled beside it, and moved as a whole.
        unfinished = executable.with_suffix(f".{os.getpid()}")
        compiled = subprocess.run(
            [*command, str(path), "-o", str(unfinished)], capture_output=True, text=True
        )
        assert compiled.returncode == 0, compiled.stderr
        unfinished.replace(executable)
    return executable


@pytest.fixture(scope="module", params=VECTORS)
def driver(request, tmp_path_factory):
    """Run the driver, compiled for one width of vectors."""
    if IS_X86:
        probe = tmp_path_factory.mktemp("probe") / "probe.cpp"
        probe.write_text(PROBE % request.param)
        if subprocess.run([build(probe, request.param)]).returncode == LACKING:
            pytest.skip(f"needs a CPU with {request.param}")
    executable = build(DRIVER, request.param)

    def run(*arguments):
        ran = subprocess.run([executable, *arguments], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr

    return run


def test_values_bits_and_faults(driver):
    driver("--problems", "400")


def test_an_allocation_that_fails_leaves_nothing(driver):
    driver("--problems", "100", "--fail-allocations")
