"""Draw which package imports which, from the imports themselves, for docs/architecture.md.

    python docs/draw_house.py

Rows import columns; a number is how many of the row's files import something of the column. Packages stand in
the order in which they may know each other, so everything lies below the diagonal but what the exceptions in
pyproject.toml allow.
"""

from __future__ import annotations

from pathlib import Path

import grimp

OUT = Path(__file__).resolve().parent / "images" / "house.svg"
#: From the bottom of the house to its top.
ORDER = ["errors", "interrupts", "os_errors", "wordings", "paths", "visible", "secrets", "recipe", "rundir",
         "hub", "embedded", "data", "planning", "model.families", "model.quantization", "model", "training",
         "serve", "share", "judge", "verbs", "cli"]
CELL, LEFT, TOP = 26, 150, 130


def package_of(module: str) -> str | None:
    """The row that a module belongs to."""
    rest = module.removeprefix("tunesmith").lstrip(".")
    places = [name for name in ORDER if rest == name or rest.startswith(name + ".")]
    return max(places, key=len, default=None)


def counts() -> dict[tuple[str, str], int]:
    """(who imports, what) -> how many files do."""
    graph = grimp.build_graph("tunesmith")
    found: dict[tuple[str, str], set[str]] = {}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            pair = package_of(module), package_of(imported)
            if None not in pair and pair[0] != pair[1]:
                found.setdefault(pair, set()).add(module)  # type: ignore[arg-type]
    return {pair: len(modules) for pair, modules in found.items()}


def picture() -> str:
    """The matrix as SVG."""
    found, size = counts(), len(ORDER) * CELL
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + size + 12}" height="{TOP + size + 12}" '
             'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>']
    for place, name in enumerate(ORDER):
        along = place * CELL
        lines += [f'<text x="{LEFT - 8}" y="{TOP + along + 17}" text-anchor="end">{name}</text>',
                  f'<text transform="translate({LEFT + along + 17} {TOP - 8}) rotate(-60)">{name}</text>',
                  f'<rect x="{LEFT + along}" y="{TOP + along}" width="{CELL}" height="{CELL}" '
                  'fill="#cccccc"/>']
    for (who, what), count in sorted(found.items()):
        x, y = LEFT + ORDER.index(what) * CELL, TOP + ORDER.index(who) * CELL
        lines += [f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="#cfe3f7"/>',
                  f'<text x="{x + CELL / 2}" y="{y + 17}" text-anchor="middle">{count}</text>']
    for place in range(len(ORDER) + 1):
        along = place * CELL
        lines.append(f'<path d="M{LEFT} {TOP + along}h{size}M{LEFT + along} {TOP}v{size}" stroke="#e0e0e0" '
                     'fill="none"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    OUT.write_text(picture(), encoding="utf-8")
    print(OUT)
