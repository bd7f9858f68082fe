"""Torch: gather and matmul, scatter with index_add_, gradients by autograd."""

import torch
from memory import settled
from problems import ALPHA, LEARNING_RATE
from timing import Call

from peers import gather

torch.set_num_threads(1)


class Torch:
    gathered_copies = gather.COPIES

    def compiled(self, f):
        return f

    def call(self, f, *arrays, values=lambda result: [result.numpy()]):
        f, tensors = self.compiled(f), [torch.from_numpy(a) for a in arrays]

        def run():
            with torch.no_grad():
                return f(*tensors)

        return Call(run, values)

    def forward(self, p):
        return self.call(gather.forward, p.o, p.W, p.h, p.inputIdx, p.outputIdx)

    def gradient_in_h(self, p):
        return self.call(gather.gradient_in_h, p.h, p.W, p.y, p.inputIdx, p.outputIdx)

    def outer_in_place(self, p):
        W = settled(p.W)

        def outer(W, x, y, i, j):
            return add_products(W, x, y, i, j, float(ALPHA))

        arrays = (W, p.h, p.y, p.inputIdx, p.outputIdx)
        return self.call(outer, *arrays, values=lambda _: [W])

    def outer_into_zeros(self, p):
        def outer(W, x, y, i, j):
            return add_products(torch.zeros_like(W), x, y, i, j, 1.0)

        return self.call(outer, p.W, p.h, p.y, p.inputIdx, p.outputIdx)

    def training_step(self, p):
        W, b = (torch.from_numpy(settled(a)).requires_grad_() for a in (p.W, p.b))
        h, i, j = (torch.from_numpy(a) for a in (p.h, p.inputIdx, p.outputIdx))
        loss = self.compiled(lambda W, b, h, i, j: (gather.forward(b[j], W, h, i, j) ** 2).mean())

        def run():
            gradients = torch.autograd.grad(loss(W, b, h, i, j), [W, b])
            with torch.no_grad():
                for parameter, gradient in zip((W, b), gradients, strict=True):
                    parameter.sub_(gradient, alpha=float(LEARNING_RATE))

        return Call(run, lambda _: [W.detach().numpy(), b.detach().numpy()])


class TorchCompiled(Torch):
    def compiled(self, f):
        # Otherwise all sizes count towards one limit, after which Torch compiles no more.
        torch.compiler.reset()
        return torch.compile(f, dynamic=False)


def add_products(W, x, y, i, j, alpha):
    """Add to the blocks of `W`, taken as one list of blocks: index_add_ knows one axis."""
    blocks = W.view(-1, *W.shape[2:])
    which = i[:, :, None] * W.shape[1] + j[:, None, :]
    blocks.index_add_(0, which.flatten(), gather.products(x, y, alpha).flatten(0, 2))
    return W
