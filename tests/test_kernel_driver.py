"""The C++ kernels without Python: random problems under sanitizers, by kernel_driver.cpp."""

import shutil
import subprocess

import pytest
from cases import needs_compiler
from kernel_fuzz import DRIVER, IS_X86, build, build_for, command_of

pytestmark = needs_compiler

# The width of vectors decides how the kernels cut blocks: 16, 32 and 64 bytes here. What is
# undefined is so at any width, and to look for it doubles the time.
SANITIZERS = {"sse2": "address,undefined", "avx2": "address", "avx512f": "address"}

LACKING = 77
PROBE = f'int main() {{ return __builtin_cpu_supports("%s") ? 0 : {LACKING}; }}\n'


def run(vectors, sanitizer, *arguments):
    command = command_of(build(DRIVER, vectors, sanitizer), sanitizer, *arguments)
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def widths():
    """The narrowest vectors and all that is undefined; as a campaign the wider ones, too."""
    if not IS_X86:
        return [None]
    narrowest, *wider = SANITIZERS
    return [narrowest, *(pytest.param(width, marks=pytest.mark.campaign) for width in wider)]


@pytest.fixture(scope="module", params=widths())
def vectors(request, tmp_path_factory):
    """A width of vectors that this processor has."""
    if IS_X86:
        probe = tmp_path_factory.mktemp("probe") / "probe.cpp"
        probe.write_text(PROBE % request.param)
        if subprocess.run([build(probe, request.param, "address")]).returncode == LACKING:
            pytest.skip(f"needs a CPU with {request.param}")
    return request.param


def test_values_bits_and_faults(vectors, in_campaign):
    problems = in_campaign("100", "400")
    shown = run(vectors, SANITIZERS.get(vectors, "address,undefined"), "--problems", problems)
    assert f"{problems} problems" in shown
    assert "error / bound" in shown


def test_an_allocation_that_fails_leaves_nothing(vectors, in_campaign):
    sanitizer = SANITIZERS.get(vectors, "address,undefined")
    run(vectors, sanitizer, "--problems", in_campaign("25", "100"), "--fail-allocations")


@pytest.mark.campaign
@pytest.mark.skipif(shutil.which("setarch") is None, reason="needs setarch")
def test_no_data_races():
    run(None, "thread", "--problems", "100")


@pytest.mark.campaign
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="needs qemu-aarch64")
@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="needs a cross compiler")
def test_on_another_machine():
    command = ["qemu-aarch64", str(build_for("aarch64")), "--problems", "50"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
