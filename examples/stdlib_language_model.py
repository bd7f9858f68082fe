# ruff: noqa: T201
"""Learn to predict the next token of the Python standard library's own source.

The embeddings of a few preceding tokens feed one hidden layer, and a class-factored softmax turns
its values h into a probability for each token of the vocabulary:

    p(token | h) = p(class | h) * p(token | class, h)

The V tokens are cut into about sqrt(V) classes of one size. Each class owns one block of weights,
and an example needs the block of its own token's class only: one `sparse_block_dot`. So an example
costs two softmaxes of about sqrt(V) values each, where a full softmax layer computes V.

    python examples/stdlib_language_model.py            # mostly compilation, when run first
    python examples/stdlib_language_model.py --dense    # a full softmax layer: some minutes
"""

import argparse
import math
import os
import signal
import sysconfig
import time
import tokenize
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

if __name__ == "__main__":
    # With classes, the products are too small for threads to help, and OpenBLAS's threads wait by
    # spinning: where another program takes a core, they make this one ten times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import get_mode, predefined_modes

from blocksparse_ops import sparse_block_dot

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None
try:
    from matplotlib.figure import Figure
except ImportError:
    Figure = None

CONTEXT = 6
EMBEDDING = 64
HIDDEN = 128
BATCH = 256
LEARNING_RATE = 3.0
MIN_COUNT = 3
HELD_OUT_FILES = 0.1
HELD_OUT_TOKENS = 32 * BATCH
EVALUATIONS = 20


# The data


@dataclass
class Corpus:
    train: np.ndarray  # token numbers, one file after the other
    held_out: np.ndarray  # the same, of other files
    counts: np.ndarray  # how often each token is in `train`, in falling order
    rare: int  # the number of the token that stands for all rare ones


def source_files(limit, rng):
    """Return the standard library's modules in random order, `limit` of them at most."""
    root = Path(sysconfig.get_paths()["stdlib"])
    # Some distributions leave the tests out; where they are, most tokens would be theirs.
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    files = [f for f in root.rglob("*.py") if skip.isdisjoint(f.relative_to(root).parts)]
    return rng.permutation(sorted(files))[:limit]


def read_tokens(path):
    """Return the tokens of a file but its comments; none if it is not valid Python."""
    try:
        with tokenize.open(path) as file:
            return [
                # An indent is only spaces and a dedent is nothing, so these go by their names.
                token.string.strip() or tokenize.tok_name[token.type]
                for token in tokenize.generate_tokens(file.readline)
                if token.type not in (tokenize.COMMENT, tokenize.NL)
            ]
    except (OSError, SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        return []


def load_corpus(limit, rng):
    """Split the sources by file, and number the tokens from the most frequent one on."""
    files = [tokens for f in source_files(limit, rng) if (tokens := read_tokens(f))]
    if len(files) < 2:
        raise SystemExit("The standard library's sources are not here as .py files.")
    cut = math.ceil(HELD_OUT_FILES * len(files))
    held_out, train = list(chain(*files[:cut])), list(chain(*files[cut:]))

    common = Counter({token: n for token, n in Counter(train).items() if n >= MIN_COUNT})
    common["<rare>"] = len(train) - common.total()
    number = {token: i for i, (token, _) in enumerate(common.most_common())}
    rare = number["<rare>"]
    return Corpus(
        np.array([number.get(token, rare) for token in train]),
        np.array([number.get(token, rare) for token in held_out]),
        np.array([n for _, n in common.most_common()]),
        rare,
    )


def draw_examples(stream, n, rng):
    """Return n random contexts, (n, CONTEXT), and the tokens that follow them, (n,)."""
    windows = np.lib.stride_tricks.sliding_window_view(stream, CONTEXT + 1)
    windows = windows[rng.integers(len(windows), size=n)]
    # Numba compiles anew for each memory layout, so all batches have the same one.
    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, -1])


def unigram_perplexity(counts, tokens):
    """Return the perplexity of a model that knows only the counts, smoothed by adding one."""
    p = (counts + 1) / (counts + 1).sum()
    return float(np.exp(-np.log(p[tokens]).mean()))


# The model


def parameter(name, value):
    return pytensor.shared(value.astype("float32"), name=name)


def log_frequencies(counts):
    """Return a softmax's biases that make it start at the frequencies: -inf for a count of 0."""
    with np.errstate(divide="ignore"):
        return np.log(counts) - np.log(counts.sum())


def log_softmax_at(logits, index):
    """Return the log-probability of one entry per row."""
    return pt.special.log_softmax(logits, axis=-1)[pt.arange(index.shape[0]), index]


def full_softmax(h, token, counts):
    """Return log p(token | h) from one softmax over all tokens, and the layer's parameters."""
    W = parameter("W", np.zeros((HIDDEN, len(counts))))
    b = parameter("b", log_frequencies(counts))
    return log_softmax_at(h @ W + b, token), [W, b]


def class_layout(vocabulary):
    """Return the number of classes and their size."""
    size = math.ceil(vocabulary**0.5)
    return math.ceil(vocabulary / size), size


def class_factored_softmax(h, token, counts):
    """Return log p(class | h) + log p(token | class, h), and the layer's parameters."""
    classes, size = class_layout(len(counts))
    # Tokens are numbered by frequency, so a class holds tokens that are about equally frequent.
    # Blocks have one size: the last class is padded with tokens of count 0, whose bias of -inf
    # gives them no probability, hence no gradient, and so no probability after any update.
    counts = np.pad(counts, (0, classes * size - len(counts))).reshape(classes, size)
    C = parameter("C", np.zeros((HIDDEN, classes)))
    c = parameter("c", log_frequencies(counts.sum(axis=1)))
    W = parameter("W", np.zeros((1, classes, HIDDEN, size)))
    b = parameter("b", log_frequencies(counts))

    token_class = token // size
    block = token_class[:, None]
    logits = sparse_block_dot(W, h[:, None, :], pt.zeros_like(block), b, block).squeeze(axis=1)
    log_p = log_softmax_at(h @ C + c, token_class) + log_softmax_at(logits, token % size)
    return log_p, [C, c, W, b]


@dataclass
class Model:
    step: pytensor.compile.Function  # (contexts, tokens, learning rate): one update by SGD
    log_p: pytensor.compile.Function  # (contexts, tokens): the tokens' summed log-probability
    parameters: dict[str, pytensor.compile.SharedVariable]


def build_model(counts, dense, mode, rng):
    context, token, lr = pt.lmatrix("context"), pt.lvector("token"), pt.fscalar("lr")
    inputs = CONTEXT * EMBEDDING
    E = parameter("E", 0.1 * rng.normal(size=(len(counts), EMBEDDING)))
    U = parameter("U", rng.normal(size=(inputs, HIDDEN)) / inputs**0.5)
    a = parameter("a", np.zeros(HIDDEN))

    rows = E[context]
    h = pt.tanh(rows.reshape((-1, inputs)) @ U + a)
    log_p, output = (full_softmax if dense else class_factored_softmax)(h, token, counts)

    parameters = [U, a, *output]
    g_rows, *gradients = pt.grad(-log_p.mean(), [rows, *parameters])
    updates = [(p, p - lr * g) for p, g in zip(parameters, gradients, strict=True)]
    # The gradient in E itself would be as large as E, and zero but for the rows of this batch.
    updates.append((E, pt.inc_subtensor(rows, -lr * g_rows)))
    model = Model(
        pytensor.function([context, token, lr], updates=updates, mode=mode),
        pytensor.function([context, token], log_p.sum(), mode=mode),
        {p.name: p for p in [E, *parameters]},
    )
    # Numba compiles at the first call. A learning rate of 0 changes nothing.
    contexts, tokens = np.zeros((BATCH, CONTEXT), "int64"), np.zeros(BATCH, "int64")
    model.log_p(contexts, tokens)
    model.step(contexts, tokens, np.float32(0))
    return model


# Training


@dataclass
class Result:
    unigram: float
    curve: list[tuple[int, float]] = field(default_factory=list)  # (step, perplexity)
    steps: int = 0
    compile_seconds: float = math.nan
    training_seconds: float = 0.0
    total_seconds: float = 0.0
    interrupted: bool = False
    model: Model | None = None

    @property
    def perplexity(self):
        return self.curve[-1][1] if self.curve else math.nan

    @property
    def tokens_per_second(self):
        return self.steps * BATCH / self.training_seconds if self.steps else 0.0


def perplexity(model, contexts, tokens):
    batches = [slice(i, i + BATCH) for i in range(0, len(tokens), BATCH)]
    return math.exp(-sum(model.log_p(contexts[s], tokens[s]) for s in batches) / len(tokens))


@contextmanager
def interrupts_noted(result):
    """Let Ctrl-C set `result.interrupted`: raised in a Numba function, it is a SystemError."""
    before = signal.signal(signal.SIGINT, lambda *_: setattr(result, "interrupted", True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def train(model, stream, held_out, steps, rng, result):
    """Train for `steps` steps, or until `result.interrupted`, and keep `result` up to date."""
    result.curve.append((0, perplexity(model, *held_out)))
    bar = tqdm(range(1, steps + 1), unit="step") if tqdm else range(1, steps + 1)
    show = bar.set_postfix_str if tqdm else print
    for step in bar:
        lr = np.float32(LEARNING_RATE * (1 - (step - 1) / steps))
        start = time.perf_counter()
        model.step(*draw_examples(stream, BATCH, rng), lr)
        result.training_seconds += time.perf_counter() - start
        result.steps = step
        last = result.interrupted or step == steps
        if last or step % math.ceil(steps / EVALUATIONS) == 0:
            result.curve.append((step, perplexity(model, *held_out)))
            speed = f"{result.tokens_per_second:,.0f} tokens/s"
            show(f"step {step:,}: perplexity {result.perplexity:.1f}, {speed}")
        if result.interrupted:
            break


# The outcome


def print_summary(result, corpus, options):
    vocabulary, tokens = len(corpus.counts), len(corpus.train)
    rare = corpus.counts[corpus.rare] / tokens
    classes, size = class_layout(vocabulary)
    layer = "full softmax" if options.dense else f"{classes} classes of {size} tokens"
    linker = type(get_mode(options.mode).linker).__name__
    parameters = sum(p.get_value(borrow=True).size for p in result.model.parameters.values())
    if result.interrupted:
        print("\nStopped before the end. So far:")
    print(f"""
data          {tokens:,} tokens to learn from, {rare:.1%} of them rare
vocabulary    {vocabulary:,} tokens, one of which stands for all rare ones
output layer  {layer}; {parameters:,} parameters in all
mode          {options.mode or "the default"} ({linker})
training      {result.steps:,} steps of {BATCH} tokens, {result.tokens_per_second:,.0f} tokens/s
perplexity    {result.perplexity:.1f} on held-out files; a unigram's is {result.unigram:.1f}
total time    {result.total_seconds:.1f} s, {result.compile_seconds:.1f} s of them compilation
""")


def draw_curve(result, path):
    steps, perplexities = zip(*result.curve, strict=True)
    axes = Figure(figsize=(7, 4.5), layout="constrained").add_subplot()
    axes.plot(steps, perplexities, marker=".", label="model")
    axes.axhline(result.unigram, color="gray", linestyle="--", label="unigram")
    axes.set(
        title="Next-token model of the standard library's source",
        xlabel=f"steps of {BATCH} tokens",
        ylabel="perplexity on held-out files",
        ylim=(0, None),
    )
    axes.legend()
    axes.figure.savefig(path, dpi=150)


def parse(argv):
    summary = "Learn to predict the next token of the standard library's source."
    parser = argparse.ArgumentParser(description=summary)
    add = parser.add_argument
    add("--dense", action="store_true", help="a full softmax layer, for comparison: some minutes")
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
    held_out = draw_examples(corpus.held_out, HELD_OUT_TOKENS, rng)
    result = Result(unigram_perplexity(corpus.counts, held_out[1]))
    try:
        print("Compiling: up to a minute at first, cached for the next time ...", flush=True)
        compile_start = time.perf_counter()
        result.model = build_model(corpus.counts, options.dense, options.mode, rng)
        result.compile_seconds = time.perf_counter() - compile_start
        with interrupts_noted(result):
            train(result.model, corpus.train, held_out, options.steps, rng, result)
    except KeyboardInterrupt:
        result.interrupted = True
    result.total_seconds = time.perf_counter() - start
    if not result.curve:
        print("\nStopped before training began.")
        return result
    print_summary(result, corpus, options)
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
