"""Whether the cost of a training step depends on how large the weights are."""

from dataclasses import replace

import numpy as np
from contenders import OURS
from ours import Ours
from problems import Problem, cases
from timing import ratio, rounds_of, summary

SMALL = cases.Sizes(64, 64, 8, 8, 4, 4, 8)
BLOCKS = 2048


class Zeros(Problem):
    """A problem whose weights are zeros: to draw a GiB of them takes long, and 2 GiB more."""

    def __init__(self, name, sizes, dtype):
        super().__init__(name, replace(sizes, iBlocks=1, oBlocks=1), dtype)
        self.sizes = sizes
        draw = cases.Draw(sizes, seed=1, dtype=dtype)
        self.inputIdx, self.outputIdx = (index % sizes.iBlocks for index in draw.indices().values())
        self.W = np.zeros((sizes.iBlocks, sizes.oBlocks, sizes.iSize, sizes.oSize), dtype)
        self.b = np.zeros((sizes.oBlocks, sizes.oSize), dtype)


def large_study(options):
    """A step on the same indices at each call, with 64 and with 2048 blocks a side."""
    problems = {
        blocks: Zeros("large", replace(SMALL, iBlocks=blocks, oBlocks=blocks), "float32")
        for blocks in (SMALL.iBlocks, BLOCKS)
    }
    for bias in (False, True):
        for name in [name for name in options.contenders if name in OURS]:
            ours = Ours(OURS[name])
            runs = {
                blocks: ours.training_step(problem, bias=bias).run
                for blocks, problem in problems.items()
            }
            times = rounds_of(runs, options.rounds, slot_seconds=10e-3)
            few, many = times.values()
            yield {
                "quantity": "W and b" if bias else "W",
                "contender": name,
                "few": summary(few),
                "many": summary(many),
                "ratio": ratio(many, few),
            }
