"""Tool calls of tools that the row does not offer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import Facts, SeenRow
from tunesmith.visible import on_one_line


class UnknownTools(Check):
    """The model would learn to call what it cannot know of."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.names: Counter[str] = Counter()
        self.none_offered = 0

    def see(self, row: SeenRow) -> None:  # noqa: D102
        names = {call.name for turn in row.turns or () for call in turn.calls} - row.offered
        if names:
            self.hits.add(row)
            self.names.update(names)
            self.none_offered += not row.offered

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        named = ", ".join(on_one_line(name, 40) for name, _ in self.names.most_common(4))
        none = f"; {self.none_offered:,} of them offer no tool at all" if self.none_offered else ""
        return self.found(
            "tool_not_offered", "warning",
            f"{rows_phrase(self.hits.count, 'calls', 'call')} tools that the row does not offer: "
            f"{named}{none}",
            "Add these tools to the rows' tools (data.tools names their column), or remove the rows.")
