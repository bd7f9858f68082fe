"""JAX: gather and matmul for the whole batch, or example by example with lax.map."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from problems import ALPHA, LEARNING_RATE
from timing import Call

from peers import gather

jax.config.update("jax_enable_x64", True)


def computed(f, *arrays):
    """A call that waits for the result."""
    f, arrays = jax.jit(f), [jnp.asarray(a) for a in arrays]
    return Call(lambda: f(*arrays).block_until_ready(), lambda result: [np.asarray(result)])


def updated(f, state, *arrays):
    """A call that replaces the first arguments, whose memory is given to the results."""
    f = jax.jit(f, donate_argnums=range(len(state)))
    state, arrays = [jnp.array(a) for a in state], [jnp.asarray(a) for a in arrays]

    def run():
        state[:] = jax.block_until_ready(f(*state, *arrays))

    return Call(run, lambda _: [np.asarray(a) for a in state])


class JAX:
    gathered_copies = gather.COPIES

    def forward(self, p):
        return computed(gather.forward, p.o, p.W, p.h, p.inputIdx, p.outputIdx)

    def gradient_in_h(self, p):
        return computed(gather.gradient_in_h, p.h, p.W, p.y, p.inputIdx, p.outputIdx)

    def outer_in_place(self, p):
        outer = partial(self.outer, alpha=p.dtype.type(ALPHA))
        return updated(lambda *args: [outer(*args)], [p.W], *self.outer_arrays(p))

    def outer_into_zeros(self, p):
        outer = partial(self.outer, alpha=p.dtype.type(1))
        return computed(
            lambda W, *args: outer(jnp.zeros_like(W), *args), p.W, *self.outer_arrays(p)
        )

    def training_step(self, p):
        rate = p.dtype.type(LEARNING_RATE)

        def loss(W, b, h, i, j):
            return (gather.forward(b[j], W, h, i, j) ** 2).mean()

        def step(W, b, *batch):
            g_W, g_b = jax.grad(loss, argnums=(0, 1))(W, b, *batch)
            return [W - rate * g_W, b - rate * g_b]

        return updated(step, [p.W, p.b], p.h, p.inputIdx, p.outputIdx)

    def outer_arrays(self, p):
        return p.h, p.y, p.inputIdx, p.outputIdx

    def outer(self, W, x, y, i, j, alpha):
        return W.at[gather.pairs(i, j)].add(gather.products(x, y, alpha))


class JAXMap(JAX):
    """No more than one example's blocks are gathered at a time."""

    gathered_copies = None
    training_step = None

    def forward(self, p):
        return self.mapped(gather.forward, p.W, p.o, p.h, p.inputIdx, p.outputIdx)

    def gradient_in_h(self, p):
        return self.mapped(gather.gradient_in_h, p.W, p.h, p.y, p.inputIdx, p.outputIdx)

    def mapped(self, f, W, *arrays):
        def each(W, *arrays):
            def one(example):
                o, *rest = (a[None] for a in example)
                return f(o, W, *rest)[0]

            return jax.lax.map(one, arrays)

        return computed(each, W, *arrays)

    def outer(self, W, x, y, i, j, alpha):
        def add(W, example):
            return JAX.outer(self, W, *(a[None] for a in example), alpha), None

        return jax.lax.scan(add, W, (x, y, i, j))[0]
