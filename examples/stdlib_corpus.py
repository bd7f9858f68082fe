"""The Python standard library's own source as a corpus of numbered tokens."""

import math
import sysconfig
import tokenize
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

MIN_COUNT = 3  # tokens that are rarer share one number
HELD_OUT_FILES = 0.1


@dataclass
class Corpus:
    train: np.ndarray  # token numbers, one file after the other
    held_out: np.ndarray  # the same, of other files
    counts: np.ndarray  # how often each token is in `train`, in falling order
    rare: float  # the share of rare tokens in `train`: one number stands for all of them


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
    ranking = common.most_common()
    number = {token: i for i, (token, _) in enumerate(ranking)}
    rare = number["<rare>"]
    return Corpus(
        np.array([number.get(token, rare) for token in train]),
        np.array([number.get(token, rare) for token in held_out]),
        np.array([n for _, n in ranking]),
        common["<rare>"] / len(train),
    )


def draw_examples(stream, length, n, rng):
    """Return n random contexts, (n, length), and the tokens that follow them, (n,)."""
    windows = np.lib.stride_tricks.sliding_window_view(stream, length + 1)
    windows = windows[rng.integers(len(windows), size=n)]
    # Numba compiles anew for each memory layout, so all batches have the same one.
    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, -1])


def unigram_perplexity(counts, tokens):
    """Return the perplexity of a model that knows only the counts, smoothed by adding one."""
    p = (counts + 1) / (counts + 1).sum()
    return float(np.exp(-np.log(p[tokens]).mean()))
