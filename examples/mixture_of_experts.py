# ruff: noqa: T201
"""Learn to read scikit-learn's handwritten digits with a mixture of experts.

A gate scores all experts for each image, and the image goes to the k that score highest. An expert
is one hidden layer, and its say in the logits is the softmax of the k scores. Each owns one block
of weights per layer, so a layer is one `sparse_block_dot`; the graph itself computes its indices.

    python examples/mixture_of_experts.py            # mostly compilation, when run first
    python examples/mixture_of_experts.py --dense    # all experts compute, most of them for nothing
"""

import argparse
import os
import time

if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one thread, whichever form runs

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import predefined_modes
from pytensor.tensor.special import log_softmax, softmax

from blocksparse_ops import sparse_block_dot

try:
    from matplotlib.figure import Figure
    from sklearn import datasets, model_selection
except ImportError as error:
    raise SystemExit(f"{error}: pip install 'blocksparse_ops[examples]'") from error

PIXELS, DIGITS, BATCH = 64, 10, 128
LEARNING_RATE, BALANCE = 0.3, np.float32(0.1)  # float32 as the loss, which it would upcast


def load_images(seed):
    """Return images to learn from and a held-out quarter, then the digits of both."""
    images, digits = datasets.load_digits(return_X_y=True)
    images = ((images - images.mean()) / images.std()).astype("float32")
    return model_selection.train_test_split(images, digits, stratify=digits, random_state=seed)


def draw_parameters(experts, hidden, rng):
    """Return the gate's weights, then weights and biases of the experts' two layers."""
    G = rng.normal(scale=0.1, size=(PIXELS, experts))
    W = rng.normal(scale=(2 / PIXELS) ** 0.5, size=(1, experts, PIXELS, hidden))
    V = rng.normal(scale=(2 / hidden) ** 0.5, size=(experts, 1, hidden, DIGITS))
    values = {"G": G, "W": W, "b": np.zeros((experts, hidden)), "V": V, "c": np.zeros((1, DIGITS))}
    return [pytensor.shared(v.astype("float32"), name=name) for name, v in values.items()]


def sparse_experts(x, chosen, gate, W, b, V, c):
    """Return the digits' logits, of no more than the chosen experts' blocks."""
    only = pt.zeros_like(chosen[:, :1])  # all pixels are one block, and so are all logits
    h = sparse_block_dot(W, x[:, None, :], only, b, chosen)
    h = pt.maximum(h, np.float32(0)) * gate[:, :, None]
    return sparse_block_dot(V, h, chosen, c, only).squeeze(axis=1)


def dense_experts(x, sent, gate, W, b, V, c):
    """Return the same of all blocks, where the gate of an expert that is not chosen is zero."""
    gate = (sent * gate[:, :, None]).sum(axis=1)
    h = x @ W[0].transpose(1, 0, 2).reshape((PIXELS, -1)) + b.flatten()
    h = pt.maximum(h, np.float32(0)).reshape((-1, b.shape[0], b.shape[1])) * gate[:, :, None]
    return h.flatten(ndim=2) @ V.reshape((-1, DIGITS)) + c[0]


def build_model(parameters, k, dense, mode):
    """Return two functions: (images, digits, lr) -> loss, images -> (digits, experts, gate)."""
    x, y, lr = pt.fmatrix("x"), pt.lvector("y"), pt.fscalar("lr")
    G, *layers = parameters
    scores, experts = x @ G, G.get_value(borrow=True).shape[1]
    chosen = pt.argsort(-scores, axis=1)[:, :k]
    gate = softmax(pt.take_along_axis(scores, chosen, axis=1), axis=1)
    sent = pt.eq(chosen[:, :, None], pt.arange(experts)).astype("float32")
    form, where = (dense_experts, sent) if dense else (sparse_experts, chosen)
    logits = form(x, where, gate, *layers)
    # Else the experts that lead at first learn most, so lead by more, and get all images.
    balance = experts * (sent.mean(axis=(0, 1)) * softmax(scores, axis=1).mean(axis=0)).sum()
    loss = BALANCE * balance - log_softmax(logits, axis=1)[pt.arange(y.shape[0]), y].mean()
    updates = [(p, p - lr * g) for p, g in zip(parameters, pt.grad(loss, parameters), strict=True)]
    step = pytensor.function([x, y, lr], loss, updates=updates, mode=mode)
    return step, pytensor.function([x], [logits.argmax(axis=1), chosen, gate], mode=mode)


def draw_routes(share, path):
    axes = Figure(figsize=(8, 1 + 0.5 * len(share)), layout="constrained").add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (expert, digit), value in np.ndenumerate(share):
        color = "white" if value > 0.5 else "black"
        axes.text(digit, expert, f"{value:.2f}", ha="center", va="center", color=color)
    axes.set(xlabel="digit", ylabel="expert", xticks=range(DIGITS), yticks=range(len(share)))
    axes.set_title("Share of each digit's held-out images that go to each expert")
    axes.figure.savefig(path, dpi=150)


def parse(argv):
    parser = argparse.ArgumentParser(description="Learn to read digits with a mixture of experts.")
    add = parser.add_argument
    add("--dense", action="store_true", help="let all experts compute, for comparison")
    add("--experts", type=int, default=8, help="how many there are (%(default)s)")
    add("-k", type=int, default=2, help="how many an image goes to (%(default)s)")
    add("--hidden", type=int, default=256, help="hidden values of an expert (%(default)s)")
    add("--steps", type=int, default=2000, help=f"updates, of {BATCH} images (%(default)s)")
    add("--seed", type=int, default=0, help="of the split, the initial weights and the batches")
    add("--mode", choices=predefined_modes, help="PyTensor's mode (its default)")
    add("--plot", default="mixture_of_experts.png", help="where to draw (%(default)s)")
    options = parser.parse_args(argv)
    if not 1 <= options.k <= options.experts:
        parser.error("k is at least 1, and at most the number of experts")
    return options


def main(argv=None):
    options = parse(argv)
    x, held_out, y, held_out_y = load_images(options.seed)
    rng = np.random.default_rng(options.seed)
    parameters = draw_parameters(options.experts, options.hidden, rng)
    print("Compiling: a minute or two at first, cached for the next time ...", flush=True)
    times = [time.perf_counter()]
    step, answer = build_model(parameters, options.k, options.dense, options.mode)
    step(x, y, np.float32(0)), answer(x)  # Numba compiles at the first call
    times.append(time.perf_counter())
    for i in range(options.steps):
        batch = rng.integers(len(x), size=BATCH)
        step(x[batch], y[batch], np.float32(LEARNING_RATE * (1 - i / options.steps)))
    compilation, training = np.diff([*times, time.perf_counter()])
    answered, chosen, _ = answer(held_out)
    learnt, accuracy = (answer(x)[0] == y).mean(), (answered == held_out_y).mean()
    counts = np.zeros((options.experts, DIGITS), int)
    np.add.at(counts, (chosen, held_out_y[:, None]), 1)
    gate, *layers, bias = (p.get_value(borrow=True).size for p in parameters)
    used = gate + sum(layers) * options.k // options.experts + bias
    print(f"""
experts      {options.k} of {options.experts}{", but all compute" if options.dense else ""}
parameters   {gate + sum(layers) + bias:,}, of which {used:,} bear on an image
compilation  {compilation:.1f} s
training     {training:.1f} s, {options.steps * BATCH / training:,.0f} images/s
accuracy     {learnt:.3f}, and {accuracy:.3f} on held-out images

Held-out images of digits 0 to 9 (columns) that went to each expert (rows), as in {options.plot}:
{counts}""")
    draw_routes(counts / np.bincount(held_out_y), options.plot)
    return counts, accuracy


if __name__ == "__main__":
    main()
