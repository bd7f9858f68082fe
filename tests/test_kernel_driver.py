r"""The C++ kernels without Python: random problems under sanitizers, by kernel_driver.cpp.

ThreadSanitizer takes too long for the suite. To run it, from the root of the repository:

    g++ -std=c++17 -O1 -g -march=native -pthread -fsanitize=thread -Iblocksparse_ops/kernels/c \
        tests/kernel_driver.cpp -o /tmp/kernel_driver
    TSAN_OPTIONS=halt_on_error=1 setarch -R /tmp/kernel_driver --problems 10000
"""

import platform
import subprocess
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


def build(path, executable, vectors):
    """Compile under sanitizers. To optimise would take four times as long."""
    command = [config.cxx, *extension.COMPILE_ARGS, "-O0", "-g1", "-pthread", f"-I{HEADERS}"]
    command += [f"-m{vectors}" if IS_X86 else "-march=native"]
    # What is undefined is so at any width, and to look for it doubles the time.
    sanitizers = "address,undefined" if vectors == VECTORS[0] else "address"
    command += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    compiled = subprocess.run(
        [*command, str(path), "-o", str(executable)], capture_output=True, text=True
    )
    assert compiled.returncode == 0, compiled.stderr


@pytest.fixture(scope="module", params=VECTORS)
def driver(request, tmp_path_factory):
    """Run the driver, compiled for one width of vectors."""
    folder = tmp_path_factory.mktemp("driver")
    if IS_X86:
        (folder / "probe.cpp").write_text(PROBE % request.param)
        build(folder / "probe.cpp", folder / "probe", request.param)
        if subprocess.run([folder / "probe"]).returncode == LACKING:
            pytest.skip(f"needs a CPU with {request.param}")
    build(DRIVER, folder / "kernel_driver", request.param)

    def run(*arguments):
        ran = subprocess.run([folder / "kernel_driver", *arguments], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr

    return run


def test_values_bits_and_faults(driver):
    driver("--problems", "400")


def test_an_allocation_that_fails_leaves_nothing(driver):
    driver("--problems", "100", "--fail-allocations")
