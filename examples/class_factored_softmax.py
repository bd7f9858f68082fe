"""A class-factored softmax, and the language model whose output layer it is.

The embeddings of a few preceding tokens feed one hidden layer, and the softmax turns its values h
into a probability for each token of the vocabulary:

    p(token | h) = p(class | h) * p(token | class, h)

The V tokens are cut into about sqrt(V) classes of one size. Each class owns one block of weights,
and an example needs the block of its own token's class only: that is `log_h_softmax`. So an example
costs two softmaxes of about sqrt(V) values each, where a full softmax layer computes V. And a
step of an optimizer costs the classes and the embeddings in use, whose state alone moves.

stdlib_language_model.py trains the model.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytensor
import pytensor.tensor as pt

from blocksparse_ops import log_h_softmax, sparse_block_take, updates

CONTEXT = 6  # tokens
EMBEDDING = 64
HIDDEN = 128
LIBRARIES = ("JAX", "MLX", "PYTORCH")


def parameter(name, value):
    return pytensor.shared(value.astype("float32"), name=name)


def log_frequencies(counts):
    """Return a softmax's biases that make it start at the frequencies: -inf for a count of 0."""
    with np.errstate(divide="ignore"):
        return np.log(counts) - np.log(counts.sum())


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
    W = parameter("W", np.zeros((classes, HIDDEN, size)))
    b = parameter("b", log_frequencies(counts))

    layer = len(counts.ravel()), classes, size, C, c, W, b
    return log_h_softmax(h, h.shape[0], *layer, token), [C, c, W, b]


def full_softmax(h, token, counts):
    """Return log p(token | h) from one softmax over all tokens, and the layer's parameters."""
    W = parameter("W", np.zeros((HIDDEN, len(counts))))
    b = parameter("b", log_frequencies(counts))
    log_p = pt.special.log_softmax(h @ W + b, axis=-1)
    return log_p[pt.arange(token.shape[0]), token], [W, b]


@dataclass
class Model:
    step: pytensor.compile.Function  # (contexts, tokens, learning rate): one step
    log_p: pytensor.compile.Function  # (contexts, tokens): the tokens' summed log-probability
    parameters: dict[str, pytensor.compile.SharedVariable]
    state: list[pytensor.compile.SharedVariable]  # all that a step changes
    layer: str  # what its output layer is, in words

    @property
    def size(self):
        return sum(p.get_value(borrow=True).size for p in self.parameters.values())

    def compile_for(self, batch):
        """Do now what the first calls with so many examples would do."""
        # Numba compiles at the first call, JAX for each shape.
        contexts, tokens = np.zeros((batch, CONTEXT), "int64"), np.zeros(batch, "int64")
        before = [x.get_value() for x in self.state]
        self.log_p(contexts, tokens)
        self.step(contexts, tokens, np.float32(0))
        for x, value in zip(self.state, before, strict=True):
            x.set_value(value)

    def perplexity(self, contexts, tokens, batch):
        """Return the perplexity of the tokens, of which `batch` are computed at a time."""
        parts = [slice(i, i + batch) for i in range(0, len(tokens), batch)]
        return math.exp(-sum(self.log_p(contexts[p], tokens[p]) for p in parts) / len(tokens))


def build_model(counts, dense, mode, rng, optimizer=updates.adam):
    """Return a model of tokens that are numbered by frequency; contexts have CONTEXT tokens."""
    context, token, lr = pt.lmatrix("context"), pt.lvector("token"), pt.fscalar("lr")
    inputs = CONTEXT * EMBEDDING
    E = parameter("E", 0.1 * rng.normal(size=(len(counts), EMBEDDING)))
    U = parameter("U", rng.normal(size=(inputs, HIDDEN)) / inputs**0.5)
    a = parameter("a", np.zeros(HIDDEN))

    rows = sparse_block_take(E, context)
    h = pt.tanh(rows.reshape((-1, inputs)) @ U + a)
    log_p, output = (full_softmax if dense else class_factored_softmax)(h, token, counts)

    parameters = [E, U, a, *output]
    loss = -log_p.mean()
    # The array libraries have no gradients by the blocks in use.
    step = optimizer(pt.grad(loss, parameters) if mode in LIBRARIES else loss, parameters, lr)
    return Model(
        pytensor.function([context, token, lr], updates=step, mode=mode),
        pytensor.function([context, token], log_p.sum(), mode=mode),
        {p.name: p for p in parameters},
        list(step),
        "full softmax" if dense else "{} classes of {} tokens".format(*class_layout(len(counts))),
    )
