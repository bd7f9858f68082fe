# ruff: noqa: T201
"""Learn to predict the next token of the Python standard library's own source.

stdlib_corpus.py reads the data, and class_factored_softmax.py has the model.

    python examples/stdlib_language_model.py            # mostly compilation, when run first
    python examples/stdlib_language_model.py --dense    # a full softmax layer: some minutes
"""

import argparse
import math
import os
import signal
import time
from dataclasses import dataclass, field

if __name__ == "__main__":
    # With classes, the products are too small for threads to help, and OpenBLAS's threads wait by
    # spinning: where another program takes a core, they make this one ten times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from class_factored_softmax import CONTEXT, build_model
from pytensor.compile.mode import get_mode, predefined_modes
from stdlib_corpus import draw_examples, load_corpus, unigram_perplexity

from blocksparse_ops import updates

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None
try:
    from matplotlib.figure import Figure
except ImportError:
    Figure = None

BATCH = 256
# Each with the rate from which it falls to zero. Adam's epsilon keeps the noise in the gradients of
# rare tokens from becoming steps as large as all others. Without adamw: its decay would give those
# places a probability that stand for no token.
OPTIMIZERS = {
    "adam": (updates.adam(epsilon=1e-4), 0.008),
    "rmsprop": (updates.rmsprop, 0.02),
    "adagrad": (updates.adagrad, 0.1),
    "momentum": (updates.momentum, 0.6),
    "nesterov_momentum": (updates.nesterov_momentum, 0.6),
    "sgd": (updates.sgd, 3.0),
}
HELD_OUT_TOKENS = 32 * BATCH
EVALUATIONS = 20


@dataclass
class Result:
    unigram: float
    compile_seconds: float = math.nan
    curve: list[tuple[int, float]] = field(default_factory=list)  # (step, perplexity)
    steps: int = 0
    tokens_per_second: float = 0.0
    total_seconds: float = math.nan
    interrupted: bool = False

    @property
    def perplexity(self):
        return self.curve[-1][1] if self.curve else math.nan


def train(model, stream, held_out, steps, rate, rng, result):
    """Train for `steps` steps, or until `result.interrupted`, and keep `result` up to date."""
    result.curve.append((0, model.perplexity(*held_out, BATCH)))
    bar = tqdm(range(1, steps + 1), unit="step") if tqdm else range(1, steps + 1)
    show = bar.set_postfix_str if tqdm else print
    seconds = 0.0
    for step in bar:
        lr = np.float32(rate * (1 - (step - 1) / steps))
        start = time.perf_counter()
        model.step(*draw_examples(stream, CONTEXT, BATCH, rng), lr)
        seconds += time.perf_counter() - start
        result.steps, result.tokens_per_second = step, step * BATCH / seconds
        if result.interrupted or step == steps or step % math.ceil(steps / EVALUATIONS) == 0:
            result.curve.append((step, model.perplexity(*held_out, BATCH)))
            speed = f"{result.tokens_per_second:,.0f} tokens/s"
            show(f"step {step:,}: perplexity {result.perplexity:.1f}, {speed}")
        if result.interrupted:
            break


def print_summary(result, model, corpus, options):
    if result.interrupted:
        print("\nStopped before the end. So far:")
    print(f"""
data          {len(corpus.train):,} tokens to learn from, {corpus.rare:.1%} of them rare
vocabulary    {len(corpus.counts):,} tokens, one of which stands for all rare ones
output layer  {model.layer}; {model.size:,} parameters in all
mode          {options.mode or "the default"} ({type(get_mode(options.mode).linker).__name__})
optimizer     {options.optimizer}
training      {result.steps:,} steps of {BATCH} tokens, {result.tokens_per_second:,.0f} tokens/s
perplexity    {result.perplexity:.1f} on held-out files; a unigram's is {result.unigram:.1f}
total time    {result.total_seconds:.1f} s, {result.compile_seconds:.1f} s of them compilation
""")


def draw_curve(result, path):
    axes = Figure(figsize=(7, 4.5), layout="constrained").add_subplot()
    axes.plot(*zip(*result.curve, strict=True), marker=".", label="model")
    axes.axhline(result.unigram, color="gray", linestyle="--", label="unigram")
    axes.set(title="Next-token model of the standard library's source", ylim=(0, None))
    axes.set(xlabel=f"steps of {BATCH} tokens", ylabel="perplexity on held-out files")
    axes.legend()
    axes.figure.savefig(path, dpi=150)


def parse(argv):
    summary = "Learn to predict the next token of the standard library's source."
    parser = argparse.ArgumentParser(description=summary)
    add = parser.add_argument
    add("--dense", action="store_true", help="a full softmax layer, for comparison: some minutes")
    add("--optimizer", choices=OPTIMIZERS, default="adam", help="whose steps (%(default)s)")
    add("--steps", type=int, default=2500, help=f"updates, of {BATCH} tokens (%(default)s)")
    add("--files", type=int, help="read only so many modules (all of them but the tests)")
    add("--seed", type=int, default=0, help="of the split, the initial weights and the batches")
    add("--mode", choices=predefined_modes, help="PyTensor's mode (its default)")
    add("--plot", default="stdlib_language_model.png", help="where to draw (%(default)s)")
    return parser.parse_args(argv)


def main(argv=None):
    options, start = parse(argv), time.perf_counter()
    rng = np.random.default_rng(options.seed)
    print("Reading the standard library ...", flush=True)
    corpus = load_corpus(options.files, rng)
    held_out = draw_examples(corpus.held_out, CONTEXT, HELD_OUT_TOKENS, rng)
    unigram = unigram_perplexity(corpus.counts, held_out[1])
    print("Compiling: up to a minute at first, cached for the next time ...", flush=True)
    result, compile_start = Result(unigram), time.perf_counter()
    before = signal.getsignal(signal.SIGINT)
    try:
        optimizer, rate = OPTIMIZERS[options.optimizer]
        model = build_model(corpus.counts, options.dense, options.mode, rng, optimizer)
        model.compile_for(BATCH)
        # Raised in a Numba function, a KeyboardInterrupt would turn into a SystemError.
        signal.signal(signal.SIGINT, lambda *_: setattr(result, "interrupted", True))
        result.compile_seconds = time.perf_counter() - compile_start
        train(model, corpus.train, held_out, options.steps, rate, rng, result)
    except KeyboardInterrupt:
        print("\nStopped before training began.")
        result.interrupted = True
        return result
    finally:
        signal.signal(signal.SIGINT, before)
    result.total_seconds = time.perf_counter() - start
    print_summary(result, model, corpus, options)
    if not tqdm:
        print("For a progress bar: pip install tqdm")
    if not Figure:
        print("For the learning curve: pip install matplotlib")
    else:
        draw_curve(result, options.plot)
        print(f"The learning curve is in {options.plot}")
    return result


if __name__ == "__main__":
    main()
