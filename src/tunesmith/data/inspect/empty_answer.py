"""Answers that are empty or blank."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import Facts, SeenRow

_COLUMN = re.compile(r"\{[^{}]*\}")


class EmptyAnswer(Check):
    """The model would learn to say nothing. A turn that calls a tool is no empty answer."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        template = facts.completion_template
        #: What the answer is where its columns are empty.
        self._literal = "" if "{{" in template or "{%" in template else _COLUMN.sub("", template).strip()
        if not _COLUMN.search(template):
            self._literal = ""

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if row.turns is None:
            empty = row.answer.strip() in ("", self._literal)
        else:
            empty = any(turn.role == "assistant" and not turn.text.strip() and not turn.calls and turn.learnt
                        for turn in row.turns)
        if empty:
            self.hits.add(row)

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        return self.found("empty_answer", "warning",
                          f"{rows_phrase(self.hits.count, 'has an empty answer', 'have empty answers')}: the "
                          "model learns to say nothing there", "Remove these rows, or fill in their answers.")
