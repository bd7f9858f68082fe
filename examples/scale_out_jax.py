# ruff: noqa: T201
"""Train a sparse layer on a mesh of devices: examples split one way, output blocks the other.

Each device runs the JAX function that PyTensor made of the layer's loss and gradients, on its own
examples and its own blocks of W. The parameters must be those of the same function on one device.

    python examples/scale_out_jax.py                 # four virtual CPU devices in one process
    python examples/scale_out_jax.py --processes 2   # the same mesh in two processes, over loopback
    python examples/scale_out_jax.py --mesh 1 4      # W in four parts, all examples on each device
"""

import argparse
import re
import socket
import subprocess
import sys
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytensor
import pytensor.tensor as pt
from jax.experimental.multihost_utils import process_allgather

from blocksparse_ops import sparse_block_dot

BATCH, WINDOW, FEATURES = 256, 2, 64  # each example uses WINDOW output blocks
BLOCKS, HIDDEN, OUT = 64, 128, 32  # W has 1 x BLOCKS blocks of HIDDEN x OUT
RATE, TOLERANCE = 2.0, 1e-5
COLLECTIVES = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"


def make_gradients():
    """Return the JAX function that PyTensor makes: (*parameters, *batch) -> (loss, *gradients)."""
    U, b, x, weight = pt.fmatrices("U", "b", "x", "weight")
    W, block, target = pt.ftensor4("W"), pt.imatrix("block"), pt.ftensor3("target")
    h = pt.tanh(x @ U)[:, None, :]
    y = sparse_block_dot(W, h, pt.zeros((block.shape[0], 1), "int32"), b, block)
    loss = (weight[:, :, None] * (y - target) ** 2).sum()
    inputs, outputs = [U, W, b, x, block, target, weight], [loss, *pt.grad(loss, [U, W, b])]
    return pytensor.function(inputs, outputs, mode="JAX").vm.jit_fn


def sum_over(values, *axes):  # a sum over one device would be counted as traffic
    return jax.lax.psum(values, [axis for axis in axes if jax.lax.axis_size(axis) > 1])


def gradients_on_mesh(gradients_of, U, W, b, x, block, target, weight):
    """Return what `gradients_of` gives for all examples, by means of this device's part of them."""
    block -= W.shape[1] * jax.lax.axis_index("blocks")
    ours = (block >= 0) & (block < W.shape[1])
    # Another shard's block becomes one of ours without weight, so that its cotangent is zero. Left
    # out of range, it would make the gradient in h of the whole example NaN.
    block, weight = jnp.where(ours, block, 0), jnp.where(ours, weight, 0)
    loss, g_U, g_W, g_b = gradients_of(U, W, b, x, block, target, weight)
    loss, g_U = sum_over((loss, g_U), "examples", "blocks")
    return loss, g_U, *sum_over((g_W, g_b), "examples")


def step(gradients_of, parameters, batch):
    loss, *gradients = gradients_of(*parameters, *batch)
    return tuple(p - RATE * g for p, g in zip(parameters, gradients, strict=True)), loss


def draw_batch(rng):
    x = rng.normal(size=(BATCH, FEATURES)).astype("float32")
    block = rng.integers(BLOCKS, size=(BATCH, WINDOW), dtype="int32")
    target = x[:, None, :OUT].repeat(WINDOW, axis=1)
    return x, block, target, np.full(block.shape, 1 / block.size, "float32")  # a mean's weights


def place(mesh, spec, data):
    """Put on each device its part of the data, and nothing else."""
    return jax.make_array_from_callback(data.shape, jax.NamedSharding(mesh, spec), data.__getitem__)


def print_traffic(hlo, W):
    """Print what the compiled step sends; fail if it has a split W in one piece."""
    print(f"W: {W.nbytes:,} bytes, {W.addressable_shards[0].data.nbytes:,} of them on each device")
    for result, kind in re.findall(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", hlo):
        arrays = re.findall(r"[a-z]+(\d+)(\[[\d,]*\])", result)
        size = sum(int(n) // 8 * prod(map(int, re.findall(r"\d+", s))) for n, s in arrays)
        print(f"per step and device: {kind} of {', '.join(s for _, s in arrays)}: {size:,} bytes")
    if not W.is_fully_replicated and f"[{','.join(map(str, W.shape))}]" in hlo:
        raise SystemExit("W has been gathered")


def train(mesh, steps):
    """Train on the mesh and on one device, and return the largest difference of a parameter."""
    rng, gradients_of = np.random.default_rng(0), make_gradients()
    split, specs = (jax.P("examples"),) * 4, (jax.P(), jax.P(None, "blocks"), jax.P("blocks"))
    run_on_one = jax.jit(partial(step, gradients_of))
    run = partial(step, partial(gradients_on_mesh, gradients_of))
    # JAX takes results of this package's primitives to vary as their first argument: no check.
    places = {"in_specs": (specs, split), "out_specs": (specs, jax.P()), "check_vma": False}
    run = jax.jit(jax.shard_map(run, mesh=mesh, **places), donate_argnums=0)
    shapes = (FEATURES, HIDDEN), (1, BLOCKS, HIDDEN, OUT), (BLOCKS, OUT)
    expected = tuple(rng.normal(scale=HIDDEN**-0.5, size=s).astype("float32") for s in shapes)
    parameters = jax.tree.map(partial(place, mesh), specs, expected)
    for number in range(1, steps + 1):
        batch = draw_batch(rng)
        parts = jax.tree.map(partial(place, mesh), split, batch)
        if number == 1:
            run = run.lower(parameters, parts).compile()
            print_traffic(run.as_text(), parameters[1])
        parameters, loss = run(parameters, parts)
        expected, loss_on_one = run_on_one(expected, batch)
        print(f"step {number}: loss {loss:.6f}, on one device {loss_on_one:.6f}")
    pairs = zip(parameters, map(np.asarray, expected), strict=True)
    gaps = [np.subtract(s.data, e[s.index]) for p, e in pairs for s in p.addressable_shards]
    return process_allgather(np.max([abs(gap).max() for gap in gaps])).max()


def launch(processes):
    """Start the processes, of which the first prints, and return whether one has failed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
    command = [sys.executable, *sys.argv, "--join", address]
    outputs = [None] + [subprocess.DEVNULL] * (processes - 1)
    running = [subprocess.Popen([*command, str(n)], stdout=o) for n, o in enumerate(outputs)]
    failed = any(process.wait() for process in reversed(running))
    for process in running:
        process.kill()  # where one has failed, the others wait for it
    return failed


def main():
    parser = argparse.ArgumentParser(description="Train a sparse layer on a mesh of devices.")
    parser.add_argument("--mesh", type=int, nargs=2, default=(2, 2), metavar=("EXAMPLES", "BLOCKS"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--join", nargs=2, help=argparse.SUPPRESS)  # what `launch` adds
    options = parser.parse_args()
    if options.processes > 1 and not options.join:
        return launch(options.processes)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", prod(options.mesh) // options.processes)
    if options.join:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(options.join[0], options.processes, int(options.join[1]))
    difference = train(jax.make_mesh(options.mesh, ("examples", "blocks")), options.steps)
    print(f"largest difference of a parameter from one device: {difference:.1e}")
    return not difference < TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
