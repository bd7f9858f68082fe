"""Draw a run: how near each contender comes to the limit, and how cost grows.

python benchmarks/chart.py benchmarks/results/full.json
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

# Okabe and Ito's colours, which colour-blind eyes tell apart; the shape says the same again.
STYLES = {
    "C": ("#0072B2", "o"),
    "Numba": ("#E69F00", "D"),
    "gather": ("#009E73", "s"),
    "gather Numba": ("#009E73", "P"),
    "NumPy": ("#CC79A7", "^"),
    "dense": ("#000000", "*"),
    "BSR": ("#000000", "X"),
    "Torch": ("#D55E00", "v"),
    "Torch compiled": ("#D55E00", "<"),
    "JAX": ("#56B4E9", "h"),
    "JAX map": ("#56B4E9", ">"),
    "ours JAX": ("#56B4E9", "D"),
    "ours PyTorch": ("#D55E00", "D"),
}
LABELS = {"gather": "PyTensor gather", "gather Numba": "PyTensor gather, Numba", "BSR": "SciPy BSR"}
OURS = ("C", "Numba")
SIZE, OUR_SIZE = 7, 10
COLUMNS = 2  # of panels: as wide as a page


def times_label(value, _):
    return f"{value:g}x"


def plain_label(value, _):
    return f"{value:g}"


def marker(name):
    colour, shape = STYLES[name]
    return {
        "marker": shape,
        "color": colour,
        "markersize": OUR_SIZE if name in OURS else SIZE,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
        "zorder": 3 + (name in OURS),
    }


def legend(figure, names, limit_style):
    handles = [
        Line2D([], [], linestyle="", label=LABELS.get(name, name), **marker(name))
        for name in STYLES
        if name in names
    ]
    handles.append(Line2D([], [], label="the machine's limit", **limit_style))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)


def quantities(records):
    return list(dict.fromkeys(record["quantity"] for record in records))


def draw_cases(records):
    """A panel a quantity, a row a case, a dot a contender."""
    labels = list(dict.fromkeys((r["case"], r["dtype"]) for r in records))
    panels = quantities(records)
    limit_style = {"color": "black", "linewidth": 1.5}
    rows = -(-len(panels) // COLUMNS)
    figure, axes = plt.subplots(
        rows,
        COLUMNS,
        figsize=(8.5, 1.6 + rows * (0.6 + 0.35 * len(labels))),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, quantity in zip(axes.flat, panels, strict=False):
        for record in [r for r in records if r["quantity"] == quantity]:
            row = labels.index((record["case"], record["dtype"]))
            for name in [n for n in STYLES if n in record["times"]]:
                times = record["times"][name]["times_the_limit"]["median"]
                axis.plot(times, row, **marker(name))
        axis.set(title=quantity.replace("_", " "), xscale="log")
        axis.axvline(1, **limit_style)
        axis.xaxis.set_major_formatter(FuncFormatter(times_label))
        axis.tick_params(labelbottom=True)
        axis.grid(axis="both", color="0.9")
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0, 0].set_yticks(
        range(len(labels)), [f"{c} {d}" if d != "float32" else c for c, d in labels]
    )
    axes[0, 0].invert_yaxis()
    figure.supxlabel("time, in multiples of the machine's limit")
    legend(figure, {name for r in records for name in r["times"]}, limit_style)
    return figure


def draw_growth(axis, records, limit_style):
    """Milliseconds of the limit and of each contender against what is varied."""
    limit = [(r["value"], 1e3 * r["limit"]["median"]) for r in records]
    axis.plot(*zip(*limit, strict=True), **limit_style)
    for name in STYLES:
        taken = [r for r in records if name in r["times"]]
        points = [(r["value"], 1e3 * r["times"][name]["median"]) for r in taken]
        if points:
            axis.plot(*zip(*points, strict=True), linewidth=1, **marker(name))
    axis.set(xscale="log", yscale="log")
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter(FuncFormatter(plain_label))
    axis.grid(color="0.9")
    axis.spines[["top", "right"]].set_visible(False)


def draw_sweep(records):
    """A row a quantity, a column an axis: time against it."""
    columns = list(dict.fromkeys(record["axis"] for record in records))
    rows = quantities(records)
    limit_style = {"color": "black", "linewidth": 1.5, "linestyle": "--"}
    figure, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(1 + 3.6 * len(columns), 1 + 2.6 * len(rows)),
        sharex="col",
        squeeze=False,
        layout="constrained",
    )
    for column, along in enumerate(columns):
        for row, quantity in enumerate(rows):
            chosen = [r for r in records if (r["axis"], r["quantity"]) == (along, quantity)]
            draw_growth(axes[row, column], chosen, limit_style)
        axes[-1, column].set_xlabel("triples a used block" if along == "reuse" else along)
    for row, quantity in enumerate(rows):
        axes[row, 0].set_ylabel(f"{quantity.replace('_', ' ')}, ms")
    legend(figure, {name for r in records for name in r["times"]}, limit_style)
    return figure


def draw(results, path):
    """Write a chart of each study that has one beside `path`; return the charts' paths."""
    written = []
    for study, draw_study in (("cases", draw_cases), ("sweep", draw_sweep)):
        if results.get(study):
            written.append(path.with_name(f"{path.stem}_{study}.svg"))
            figure = draw_study(results[study])
            figure.savefig(written[-1], metadata={"Date": None})
            plt.close(figure)
    return written


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source)
