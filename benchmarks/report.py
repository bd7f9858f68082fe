"""The results as tables, in Markdown."""

from math import exp, log
from statistics import fmean

from problems import ODD_SIZES


def table(head, rows):
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in [head, rule, *rows]
    )


def ms(seconds):
    return f"{1e3 * seconds:.3g} ms"


def us(summary):
    low, high = summary["quartiles"]
    return f"{1e6 * summary['median']:.2f} us ({1e6 * low:.2f} to {1e6 * high:.2f})"


def percent(summary):
    low, high = summary["quartiles"]
    return f"{summary['median']:.0%} ({low:.0%} to {high:.0%})"


def share(entry):
    """Of the limit: the quotient the other way round."""
    return f"{1 / entry['times_the_limit']['median']:.0%}"


def label(record):
    return record["case"] if record["dtype"] == "float32" else f"{record['case']} {record['dtype']}"


OURS = ("C", "Numba")
LIMITS = (
    "product",
    "read",
    "scattered read",
    "fill",
    *(f"{name}, outer in place" for name in OURS),
)


def cell(record, name):
    """Ours with their share of the limit, a peer with how many times the first of ours it takes."""
    if name in record["skipped"]:
        return record["skipped"][name]
    if name not in record["times"]:
        return ""
    entry = record["times"][name]
    time = ms(entry["median"])
    if name in OURS:
        return f"{time}, {share(entry)}"
    first = next((record["times"][n]["median"] for n in OURS if n in record["times"]), None)
    return time if first is None else f"{time}, {entry['median'] / first:.3g}x"


def names_in(records):
    names = {}
    for record in records:
        names |= dict.fromkeys([*record["times"], *record["skipped"]])
    return [name for name in names if name not in LIMITS]


def cases(results):
    records = results["cases"]
    for quantity in dict.fromkeys(r["quantity"] for r in records):
        chosen = [r for r in records if r["quantity"] == quantity]
        names = names_in(chosen)
        rows = [
            [
                label(r),
                f"{ms(r['limit']['median'])}, {r['bound']}",
                ms(r["times"]["scattered read"]["median"]),
                *(cell(r, n) for n in names),
            ]
            for r in chosen
        ]
        head = ["case", "limit", "blocks read", *names]
        yield f"### {quantity.replace('_', ' ')}\n\n" + table(head, rows)
        if quantity == "outer_into_zeros":
            yield from fresh_gradients(chosen)
    if results["absent"]:
        yield f"Not installed: {', '.join(results['absent'])}."


def fresh_gradients(records):
    """Into zeros, against a fill and our own outer in place."""
    rows = []
    for record in records:
        times = record["times"]
        for name in [n for n in OURS if n in times]:
            parts = times["fill"]["median"] + times[f"{name}, outer in place"]["median"]
            rows.append(
                [
                    label(record),
                    name,
                    ms(times["fill"]["median"]),
                    ms(times[f"{name}, outer in place"]["median"]),
                    ms(times[name]["median"]),
                    f"{times[name]['median'] / parts:.2f}",
                ]
            )
    yield table(["case", "", "fill", "outer in place", "into zeros", "of the sum"], rows)


def odd(results):
    rows = [
        [
            record["quantity"].replace("_", " "),
            record["contender"],
            *(
                f"{record['rates'][n]['median']:.3g} GF/s, {record['relative'][n]['median']:.0%}"
                for n in ODD_SIZES
            ),
        ]
        for record in results["odd"]
    ]
    head = ["", "", *(f"{size} x {size}" for size in ODD_SIZES)]
    yield "### Blocks of L's batch, and their rate beside that of 64 x 64\n\n" + table(head, rows)


def sweep(results):
    for axis in dict.fromkeys(r["axis"] for r in results["sweep"]):
        chosen = [r for r in results["sweep"] if r["axis"] == axis]
        names = names_in(chosen)
        rows = [
            [
                r["quantity"].replace("_", " "),
                f"{r['value']:.3g}",
                f"{r['reuse']:.3g}",
                f"{ms(r['limit']['median'])}, {r['bound']}",
                *(cell(r, n) for n in names),
            ]
            for r in sorted(chosen, key=lambda r: r["quantity"])
        ]
        head = ["", axis, "triples a block", "limit", *names]
        yield f"### Sweep over {axis}\n\n" + table(head, rows)


def overhead(results):
    rows = [
        [r["quantity"], r["contender"], us(r["identity"]), us(r["op"]), us(r["above"])]
        for r in results["overhead"]
    ]
    head = ["a call on T", "", "identity", "op", "above"]
    yield "### Overhead of a call\n\n" + table(head, rows)


def large(results):
    rows = [
        [r["quantity"], r["contender"], us(r["few"]), us(r["many"]), f"{r['ratio']['median']:.2f}"]
        for r in results["large"]
    ]
    head = ["updates", "", "64 x 64 blocks", "2048 x 2048 blocks", "ratio"]
    yield "### A training step, and the size of the weights\n\n" + table(head, rows)


def scaling(results):
    rows = [
        [
            label(r),
            r["quantity"].replace("_", " "),
            r["contender"],
            f"{r['scaling']['median']:.2f}",
            f"{r['product']['median']:.2f}",
            percent(r["relative"]),
        ]
        for r in results["scaling"]
    ]
    head = ["case", "quantity", "", "scaling", "a matrix product's", "share"]
    yield f"### {results['settings']['threads']} threads\n\n" + table(head, rows)


def best_by_hand(record):
    """The fastest form that is not ours, and its seconds; None where none takes part."""
    times = {name: t for name, t in record["times"].items() if name != "ours"}
    return min(times.items(), key=lambda item: item[1], default=None)


def times_as_fast(record):
    """How many times as fast ours is as the best form by hand; NaN where none takes part."""
    best = best_by_hand(record)
    return best[1] / record["times"]["ours"] if best else float("nan")


def mean_of(ratios):
    """The geometric mean."""
    return exp(fmean(map(log, ratios)))


WORST_CELLS = 8


def by_hand(results):
    """For each mode the means, and where ours does worst."""
    compared = [r for r in results["by_hand"] if best_by_hand(r)]
    kinds = dict.fromkeys((r["mode"], r["window"], r["quantity"], r["indices"]) for r in compared)
    rows = []
    for kind in kinds:
        mode, window, quantity, indices = kind
        ratios = [
            times_as_fast(r)
            for r in compared
            if (r["mode"], r["window"], r["quantity"], r["indices"]) == kind
        ]
        slower = str(sum(ratio < 1 for ratio in ratios))
        figures = [f"{mean_of(ratios):.2f}", f"{min(ratios):.2f}", slower]
        rows.append([mode, quantity, indices, str(window), str(len(ratios)), *figures])
    head = ["mode", "quantity", "indices", "window", "cells", "mean", "worst", "slower"]
    title = "### Ours, in multiples of the speed of the best form by hand"
    yield f"{title}\n\n{table(head, rows)}"
    for mode in dict.fromkeys(r["mode"] for r in compared):
        chosen = [r for r in compared if r["mode"] == mode]
        yield from worst_cells(mode, chosen)


def worst_cells(mode, records):
    rows = []
    for record in sorted(records, key=times_as_fast)[:WORST_CELLS]:
        name, time = best_by_hand(record)
        rows.append(
            [f"{record['groups']}, {record['iSize']} x {record['oSize']}", str(record["window"])]
            + [record[field] for field in ("dtype", "quantity", "indices")]
            + [f"{1e6 * record['times']['ours']:.0f} us", f"{1e6 * time:.0f} us, {name}"]
            + [f"{times_as_fast(record):.2f}"]
        )
    head = ["groups, block", "window", "dtype", "quantity", "indices", "ours", "by hand", ""]
    mean = mean_of(map(times_as_fast, records))
    title = f"### {mode}: {len(records)} cells, geometric mean {mean:.2f}, the worst"
    yield f"{title}\n\n{table(head, rows)}"


def tables(study, results):
    """All tables of one study as one text."""
    parts = {
        "cases": cases,
        "odd": odd,
        "sweep": sweep,
        "overhead": overhead,
        "large": large,
        "scaling": scaling,
    }
    return "\n\n".join(parts[study](results)) + "\n"
