"""Draw a run of by_hand.py: red where ours is slower than the best form by hand.

python benchmarks/heat_map.py benchmarks/results/by_hand.json
"""

import json
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from report import times_as_fast

# White is as fast as by hand, the ends an eighth and eight times.
NORM = LogNorm(1 / 8, 8)
TICKS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
ROWS, COLUMNS = ("dtype", "indices", "iSize"), ("groups", "oSize")
CELL = 0.19  # inches


def labels(records, fields):
    return sorted({tuple(record[field] for field in fields) for record in records})


def matrix(records, rows, columns):
    """How many times as fast ours is, NaN where nothing was compared."""
    values = np.full((len(rows), len(columns)), np.nan)
    for record in records:
        row, column = (tuple(record[f] for f in fields) for fields in (ROWS, COLUMNS))
        values[rows.index(row), columns.index(column)] = times_as_fast(record)
    return values


def borders(names):
    """Where all but the last field of a label change."""
    return [k for k in range(1, len(names)) if names[k - 1][:-1] != names[k][:-1]]


def label_groups(axis, names, direction):
    """Name each run of labels that differ in the last field only, beyond the ticks."""
    edges = [0, *borders(names), len(names)]
    middles = [(a + b - 1) / 2 for a, b in pairwise(edges)]
    texts = [", ".join(map(str, names[edge][:-1])) for edge in edges[:-1]]
    if direction == "x":
        second = axis.secondary_xaxis(-0.045)
        second.set_xticks(middles, texts)
    else:
        second = axis.secondary_yaxis(-0.11)
        second.set_yticks(middles, texts, rotation=90, va="center")
    second.tick_params(length=0, labelsize=6)
    second.spines[["left", "bottom"]].set_visible(False)


def draw_panel(axis, records, rows, columns):
    image = axis.imshow(matrix(records, rows, columns), cmap="RdBu", norm=NORM, aspect="equal")
    axis.set_facecolor("0.85")
    axis.set_xticks(range(len(columns)), [str(c[-1]) for c in columns])
    axis.set_yticks(range(len(rows)), [str(r[-1]) for r in rows])
    axis.tick_params(length=0, labelsize=6)
    for border in borders(columns):
        axis.axvline(border - 0.5, color="black", linewidth=0.6)
    for border in borders(rows):
        axis.axhline(border - 0.5, color="black", linewidth=0.6)
    return image


def draw_window(records):
    """A row of panels a quantity, a column a mode."""
    rows, columns = labels(records, ROWS), labels(records, COLUMNS)
    modes = list(dict.fromkeys(record["mode"] for record in records))
    quantities = list(dict.fromkeys(record["quantity"] for record in records))
    figure, axes = plt.subplots(
        len(quantities),
        len(modes),
        figsize=(
            2 + len(modes) * (0.3 + CELL * len(columns)),
            1.2 + len(quantities) * (0.6 + CELL * len(rows)),
        ),
        squeeze=False,
        layout="constrained",
    )
    for panels, quantity in zip(axes, quantities, strict=True):
        for axis, mode in zip(panels, modes, strict=True):
            chosen = [r for r in records if (r["mode"], r["quantity"]) == (mode, quantity)]
            image = draw_panel(axis, chosen, rows, columns)
            axis.set_title(f"{mode}, {quantity}", fontsize=7)
        label_groups(panels[0], rows, "y")
    for axis in axes[-1]:
        label_groups(axis, columns, "x")
    figure.supylabel("iSize; dtype and indices", fontsize=8)
    figure.supxlabel("oSize; groups", fontsize=8)
    bar = figure.colorbar(image, ax=axes, extend="both", shrink=0.5, aspect=40)
    bar.ax.yaxis.set_major_locator(FixedLocator(TICKS))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    bar.ax.tick_params(labelsize=6)
    bar.set_label("as fast as the best form by hand", fontsize=8)
    return figure


def draw(records, path):
    """Write a map for each width of the window beside `path`; return the maps' paths."""
    written = []
    for window in dict.fromkeys(record["window"] for record in records):
        written.append(path.with_name(f"{path.stem}_{window}.svg"))
        figure = draw_window([r for r in records if r["window"] == window])
        figure.savefig(written[-1], metadata={"Date": None})
        plt.close(figure)
    return written


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text())["by_hand"], source)
