"""Draw docs/architecture.svg, the parts of the package and their imports, from the code; with --check, compare only.

    python docs/draw_architecture.py [--check]

The layers are those of the import-linter contract in pyproject.toml, the sentences the docstrings of the packages. An
arrow A -> B means that A imports B; arrows that follow from others (A -> B -> C) are left out.
"""

from __future__ import annotations

import ast
import itertools
import sys
import textwrap
import tomllib
from collections import Counter
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vaekit"
PICTURE = ROOT / "docs" / "architecture.svg"
WIDTH, HEIGHT, GAP = 860, 42, 20  # of a layer
LANE, LINE = 14, 13


def layers() -> list[list[str]]:
    """The parts from top to bottom; those of one layer do not import each other."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = (c for c in config["contracts"] if c["type"] == "layers")
    rows = [[part.strip() for part in layer.split("|")] for layer in contract["layers"]]
    return [row for row in rows if row != ["__main__"]]


def imports(parts: list[str]) -> set[tuple[str, str]]:
    """(A, B) where some module of A imports one of B."""
    graph = grimp.build_graph("vaekit")
    return {
        (a, b)
        for a, b in itertools.permutations(parts, 2)
        if graph.direct_import_exists(
            importer=f"vaekit.{a}", imported=f"vaekit.{b}", as_packages=True
        )
    }


def reduced(edges: set[tuple[str, str]], order: list[str]) -> list[tuple[str, str]]:
    """The edges that do not follow from others."""
    below: dict[str, set[str]] = {}
    for part in reversed(order):
        targets = {b for a, b in edges if a == part}
        below[part] = targets.union(*(below[b] for b in targets))
    return sorted(
        (a, b)
        for a, b in edges
        if not any(b in below[c] for c in {y for x, y in edges if x == a} - {b})
    )


def sentence(part: str) -> str:
    """The first paragraph of a part's docstring."""
    path = PACKAGE / part / "__init__.py"
    path = path if path.exists() else PACKAGE / f"{part}.py"
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def svg() -> str:
    rows = layers()
    order = [part for row in rows for part in row]
    boxes: dict[str, tuple[float, float, float]] = {}  # x, y, width
    for i, row in enumerate(rows):
        width = (WIDTH - GAP * (len(row) - 1)) / len(row)
        for j, part in enumerate(row):
            boxes[part] = j * (width + GAP), i * (HEIGHT + GAP), width
    shapes, lanes, ends = [], {"left": 0, "right": 0}, Counter[str]()
    for a, b in reduced(imports(order), order):
        (xa, ya, wa), (xb, yb, wb) = boxes[a], boxes[b]
        if yb - ya <= HEIGHT + GAP:
            x = (max(xa, xb) + min(xa + wa, xb + wb)) / 2
            shapes.append(arrow(f"M {x:.0f} {ya + HEIGHT} V {yb - 2}"))
            continue
        # Around the boxes in between, on a lane of its own.
        left = xb == 0 and wb < WIDTH
        side = "left" if left else "right"
        lanes[side] += 1
        lane = -LANE * lanes[side] if left else WIDTH + LANE * lanes[side]
        start, end = (xa, xb - 2) if left else (xa + wa, xb + wb + 2)
        low, high = ya + HEIGHT * 0.7, yb + 8 + 8 * ends[b]
        ends[b] += 1
        shapes.append(arrow(f"M {start:.0f} {low:.0f} H {lane:.0f} V {high:.0f} H {end:.0f}"))
    for part in order:
        x, y, width = boxes[part]
        shapes.append(f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{HEIGHT}" rx="5"/>')
        shapes.append(f'<text class="name" x="{x + 12:.0f}" y="{y + 26}">{part}</text>')
        lines = textwrap.wrap(sentence(part).replace("`", ""), round((width - 130) / 6))[:3]
        top = y + HEIGHT / 2 - LINE * (len(lines) - 1) / 2 + 4
        for i, line in enumerate(lines):
            text = f'<text x="{x + 118:.0f}" y="{top + i * LINE:.0f}">{escape(line)}</text>'
            shapes.append(text)
    left, right = (LANE * (lanes[side] + 1) for side in ("left", "right"))
    box = f"{-left} {-GAP} {left + WIDTH + right} {len(rows) * (HEIGHT + GAP) + GAP}"
    body = "\n".join(shapes)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-family="sans-serif">
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M 0 0 L 8 4 L 0 8 z" style="fill:#555;stroke:none"/></marker></defs>
<style>rect {{ fill: #f4f7fb; stroke: #3f6fa3 }} path {{ fill: none; stroke: #555 }}
text {{ font-size: 11px; fill: #333 }} .name {{ font-size: 15px; font-weight: bold; fill: #123 }}</style>
<rect x="{-left}" y="{-GAP}" width="100%" height="100%" style="fill:white;stroke:none"/>
{body}
</svg>
"""


def arrow(path: str) -> str:
    return f'<path d="{path}" marker-end="url(#head)"/>'


def main() -> None:
    text = svg()
    if "--check" in sys.argv:
        if not PICTURE.exists() or PICTURE.read_text() != text:
            sys.exit("docs/architecture.svg is not current: python docs/draw_architecture.py")
    else:
        PICTURE.write_text(text)


if __name__ == "__main__":
    main()
