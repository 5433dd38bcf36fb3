"""Answers that are empty or blank."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import SeenRow


class EmptyAnswer(Check):
    """The model would learn to say nothing. A turn that calls a tool is no empty answer."""

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if row.turns is None:
            empty = not row.answer.strip()
        else:
            empty = any(turn.role == "assistant" and not turn.text.strip() and not turn.calls and turn.learnt
                        for turn in row.turns)
        if empty:
            self.hits.add(row)

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        return self.found("empty_answer", "warning",
                          f"{rows_phrase(self.hits.count, 'has an empty answer', 'have empty answers')}: the "
                          "model learns to say nothing there", "Remove these rows, or fill in their answers.")
