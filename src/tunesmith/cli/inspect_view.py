"""What `tunesmith inspect` prints: counts, lengths, rows with what is learnt in colour, findings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.cli.common import relative
from tunesmith.visible import on_one_line, visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.text import Text

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_BAR, _TOKENS = 40, 160


def inspect_view(result: dict[str, Any]) -> RenderableType:
    """The whole view, for rich to print."""
    return _View(result)


class _View:
    """Knows when it is printed whether there are colours."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        result = self.result
        coloured = console.color_system is not None and not console.no_color
        yield Text("\n".join(_count_lines(result)))
        yield Text("")
        yield Text("\n".join(_bars(result["histogram"])))
        for example in result.get("examples", []):
            yield from _example(example, coloured)
        yield Text("")
        for remark in result["remarks"]:
            yield _labelled("", "", on_one_line(remark, 600) + "\n")
        if not result["findings"]:
            yield Text("  No findings.")
        for finding in result["findings"]:
            yield _finding(finding)
        if "html" in result:
            yield Text(f"\n  page     {visible(relative(result['html']))}")


def _count_lines(result: dict[str, Any]) -> list[str]:
    lengths = result["lengths"]
    lines = [f"  rows     {result['rows']:,}, of which {result['held_out']:,} are held out",
             f"  tokens   {result['tokens']:,}, of which {result['loss_tokens']:,} bear loss"]
    if lengths:
        lines.append(f"  lengths  {lengths['min']:,} to {lengths['max']:,} tokens, median "
                     f"{lengths['p50']:,}, 95% up to {lengths['p95']:,}")
    if result["lost_tokens"]:
        lines.append(f"  cut      data.max_length ({result['max_length']:,}) costs {result['lost_tokens']:,} "
                     "tokens")
    return lines


def _bars(histogram: list[dict[str, int | None]]) -> list[str]:
    if not histogram:
        return []
    most = max(bar["rows"] or 0 for bar in histogram)
    names = [f"from {bar['from']:,}" if bar["to"] is None else f"{bar['from']:,}-{bar['to']:,}"
             for bar in histogram]
    width = max(map(len, names))
    return [f"  {name:>{width}}  {'#' * -(-_BAR * (bar['rows'] or 0) // most)} {bar['rows'] or 0:,}"
            for name, bar in zip(names, histogram, strict=True)]


def _example(example: dict[str, Any], coloured: bool) -> RenderResult:
    """A row's tokens; what bears loss is in colour, without colours between marks."""
    from rich.padding import Padding
    from rich.text import Text

    side = ", held out" if example["held_out"] else ""
    learnt = sum(example["loss_mask"])
    yield Text(f"\n  {_place(example['place'])}{side}: {len(example['ids']):,} tokens, {learnt:,} bear "
               "loss")
    text, inside = Text(), False
    for number, (piece, loss) in enumerate(zip(example["pieces"], example["loss_mask"], strict=True)):
        if number == _TOKENS:
            text.append(f" ... {len(example['ids']) - _TOKENS:,} more", "dim")
            break
        if coloured:
            text.append(visible(piece),
                        ("black on green", "black on bright_green")[number % 2] if loss else "")
            continue
        if loss != inside:
            text.append("⟦" if loss else "⟧")
            inside = loss
        text.append(visible(piece))
    if inside:
        text.append("⟧")
    yield Padding(text, (0, 0, 0, 4))


def _finding(finding: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    text = Text(f"{finding['kind']}: {on_one_line(finding['message'], 600)}.")
    if finding["rows"]:
        text.append(f"\n{_places(finding['rows'][:3])}{', ...' if finding['count'] > 3 else ''}", "dim")
    text.append(f"\n{on_one_line(finding['advice'], 600)}\n")
    return _labelled(finding["severity"], _COLOURS[finding["severity"]], text)


def _labelled(label: str, colour: str, text: Text | str) -> RenderableType:
    """A text with a label at its left."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(width=10)
    table.add_column(overflow="fold")
    table.add_row(Text(f"  {label}", colour), text if isinstance(text, Text) else Text(text))
    return table


def _places(places: list[str]) -> str:
    """Some places; of those in the same file only the first names it."""
    shown = [_place(place) for place in places]
    for number in range(len(places) - 1, 0, -1):
        before, this = (place.rpartition(", ") for place in places[number - 1:number + 1])
        if this[1] and this[0] == before[0]:
            shown[number] = on_one_line(this[2], 100)
    return ", ".join(shown)


def _place(place: str) -> str:
    """A row's place as short as it can be said from here."""
    path, comma, rest = place.rpartition(", ")
    return on_one_line(f"{relative(path)}{comma}{rest}" if comma else place, 100)
