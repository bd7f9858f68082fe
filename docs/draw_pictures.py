"""Draw product.svg, the blocks of W that two examples touch and where the sums go, and ragged.svg,
windows that differ in length.

python docs/draw_pictures.py
"""

from pathlib import Path

BLOCKS = 5, 6  # input blocks, output blocks
EXAMPLES = [  # name, color, inputIdx, outputIdx, columns of the values, row of the sums
    ("0", "#0a66c2", [0, 3], [1, 4], 40, 432),
    ("1", "#c2410c", [3, 4], [4, 5], 88, 478),
]
SIZE, GAP = 56, 8
LEFT, TOP = 190, 66
INK = "#1f2328"

# Of ragged.svg: which blocks each example names.
WINDOWS = [[2, 0, 5], [4], [], [1, 3, 0, 2], [5, 1]]
COLORS = ["#0a66c2", "#c2410c", "#6e7781", "#1a7f37", "#8250df"]
CELL = 52


def block_at(i, j):
    return LEFT + j * (SIZE + GAP), TOP + i * (SIZE + GAP)


def rect(x, y, width, height, fill, opacity=1.0, stroke="none"):
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{fill}" '
        f'fill-opacity="{opacity}" stroke="{stroke}" stroke-width="2"/>'
    )


def line(x1, y1, x2, y2, color):
    return f'<path d="M{x1} {y1} L{x2} {y2}" stroke="{color}" stroke-width="3" fill="none"/>'


def text(x, y, words, color=INK, size=19, anchor="middle"):
    return (
        f'<text x="{x}" y="{y}" fill="{color}" font-size="{size}" text-anchor="{anchor}">'
        f"{words}</text>"
    )


def grid():
    """All blocks of W, and their numbers."""
    rows, columns = BLOCKS
    for j in range(columns):
        x, y = block_at(0, j)
        yield text(x + SIZE / 2, y - 12, j)
    for i in range(rows):
        x, y = block_at(i, 0)
        yield text(x - 16, y + SIZE / 2 + 6, i)
        for j in range(columns):
            yield rect(*block_at(i, j), SIZE, SIZE, "#d0d7de", 0.45)


def touched():
    """The blocks that each example uses; a block that both use is shared out between them."""
    for k, (_, color, inputs, outputs, *_) in enumerate(EXAMPLES):
        _, _, other_inputs, other_outputs, *_ = EXAMPLES[1 - k]
        for i in inputs:
            for j in outputs:
                x, y = block_at(i, j)
                shared = i in other_inputs and j in other_outputs
                width = SIZE / 2 if shared else SIZE
                yield rect(x + (k * width if shared else 0), y, width, SIZE, color, 0.85)


def values():
    """The windows of h beside their rows, and of o below their columns, where the sums go."""
    bottom = block_at(BLOCKS[0] - 1, 0)[1] + SIZE
    for k, (name, color, inputs, outputs, column, row) in enumerate(EXAMPLES):
        for v, i in enumerate(inputs):
            _, y = block_at(i, 0)
            yield rect(column, y, 26, SIZE, color, 0.25, color)
            yield text(column + 13, y + SIZE / 2 + 6, v, color)
        for w, j in enumerate(outputs):
            x, _ = block_at(0, j)
            middle = x + SIZE / 2 + (k - 0.5) * 32
            yield line(middle, bottom + 4, middle, row - 9, color)
            yield f'<path d="M{middle - 7} {row - 11} l14 0 l-7 9 z" fill="{color}"/>'
            yield rect(middle - 20, row, 40, 26, color, 0.25, color)
            yield text(middle, row + 20, f"&#931; {w}", color)
        yield text(20, row + 20, f"o[{name}]", color, anchor="start")
        yield text(column + 13, TOP - 12, f"h[{name}]", color)
        windows = f"inputIdx[{name}] = {inputs},  outputIdx[{name}] = {outputs}"
        yield text(20, 536 + 26 * k, windows, color, anchor="start")


def drawing(width, height, parts):
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif">',
        rect(0, 0, width, height, "#ffffff"),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def product():
    x, _ = block_at(0, BLOCKS[1] - 1)
    yield from (*grid(), *touched(), *values())
    yield text(LEFT + (x + SIZE - LEFT) / 2, 24, "output blocks of W")
    for line, word in enumerate(("input", "blocks", "of W")):
        yield text(x + SIZE + 16, TOP + 20 + 24 * line, word, anchor="start")


def ragged():
    """A row for each example: its places of inputIdx, and of h."""
    longest = max(map(len, WINDOWS))
    for title, left in (("inputIdx", 70), ("h", 370)):
        yield text(left + longest * CELL / 2, 28, title)
        for n, (window, color) in enumerate(zip(WINDOWS, COLORS, strict=True)):
            y = 44 + n * CELL
            for v in range(longest):
                x = left + v * CELL
                is_named = v < len(window)
                yield rect(x, y, CELL - 6, CELL - 6, color if is_named else "#ffffff", 0.25, color)
                word = (window[v] if is_named else -1) if title == "inputIdx" else ""
                yield text(x + CELL / 2 - 3, y + CELL / 2 + 3, word, color)
                if not is_named and title == "h":
                    end = CELL - 12
                    yield line(x + 6, y + 6, x + end, y + end, color)
                    yield line(x + end, y + 6, x + 6, y + end, color)
    for n, color in enumerate(COLORS):
        yield text(50, 44 + n * CELL + CELL / 2 + 3, n, color)


PICTURES = {
    "product.svg": drawing(660, 576, product()),
    "ragged.svg": drawing(600, 44 + len(WINDOWS) * CELL + 8, ragged()),
}

if __name__ == "__main__":
    for name, picture in PICTURES.items():
        Path(__file__).with_name(name).write_text(picture)
