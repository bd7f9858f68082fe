"""The example of a mesh of devices: one process, and two that JAX joins over loopback."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("jax")

PATH = Path(__file__).parent.parent / "examples" / "scale_out_jax.py"


def run(*arguments):
    """What the example prints; it fails by itself if the parameters differ."""
    # The devices have to be there before JAX starts, hence a process of its own.
    command = [sys.executable, PATH, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def collectives(shown):
    """The kind, the shapes and the bytes of each collective operation in what is printed."""
    found = re.findall(r"per step and device: (\S+) of (.*): ([\d,]+) bytes", shown)
    return [(kind, shapes, int(size.replace(",", ""))) for kind, shapes, size in found]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_mesh_learns_what_one_device_does(processes):
    shown = run("--processes", processes)
    assert "W: 1,048,576 bytes, 524,288 of them on each device" in shown

    losses = re.findall(r"step \d+: loss (\S+), on one device (\S+)", shown)
    assert len(losses) == 10
    ours, on_one_device = ([float(loss) for loss in column] for column in zip(*losses, strict=True))
    assert ours == pytest.approx(on_one_device, rel=1e-6)
    assert ours[-1] < 0.6 * ours[0]
    (difference,) = re.findall(r"largest difference .*: (\S+)", shown)
    assert float(difference) < 2e-6

    sent = collectives(shown)
    assert {kind for kind, *_ in sent} == {"all-reduce"}
    shapes = [shape for _, shapes, _ in sent for shape in re.findall(r"\[.*?\]", shapes)]
    assert sorted(shapes) == ["[1,32,128,32]", "[32,32]", "[64,128]", "[]"]
    gradients = 4 * (32 * 128 * 32 + 32 * 32 + 64 * 128)
    # PyTensor sums the float32 loss in float64, where JAX has it.
    assert sum(size for *_, size in sent) - gradients in {4, 8}


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Weights:
    shape = (1, 64, 128, 32)
    nbytes = 4 * 64 * 128 * 32
    is_fully_replicated = False
    addressable_shards = (SimpleNamespace(data=SimpleNamespace(nbytes=nbytes // 2)),)


def test_the_report_counts_bytes(example, capsys):
    hlo = """
  %a = (f32[1,32,128,32]{3,2,1,0}, f32[32,32]{1,0}) all-reduce(%x, %y), channel_id=1
  %b = f64[] all-reduce-start(%z), replica_groups={{0,1}}
  %c = f64[] all-reduce-done(%b)
  %d = bf16[6,2]{1,0} collective-permute(%z)
  %e = f32[32,32]{1,0} get-tuple-element(%all-reduce.5), index=1
"""
    example.print_traffic(hlo, Weights)
    assert collectives(capsys.readouterr().out) == [
        ("all-reduce", "[1,32,128,32], [32,32]", 4 * (32 * 128 * 32 + 32 * 32)),
        ("all-reduce", "[]", 8),
        ("collective-permute", "[6,2]", 24),
    ]


def test_the_example_fails_where_W_is_gathered(example):
    hlo = "%g = f32[1,64,128,32]{3,2,1,0} all-gather(%W), dimensions={1}"
    with pytest.raises(SystemExit, match="gathered"):
        example.print_traffic(hlo, Weights)
