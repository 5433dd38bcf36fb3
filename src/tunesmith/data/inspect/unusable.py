"""Rows that cannot become tokens, such as messages that the chat template refuses."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.nothing_to_learn import nothing_to_learn
from tunesmith.data.inspect.seen import Facts, SeenRow
from tunesmith.visible import on_one_line


class Unusable(Check):
    """Training stops at the first of them."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.reason = ""

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if row.refusal is not None and not nothing_to_learn(row):
            self.hits.add(row)
            self.reason = self.reason or row.refusal

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        return self.found("unusable_row", "error",
                          f"{rows_phrase(self.hits.count, 'cannot', 'cannot')} be used: "
                          f"{on_one_line(self.reason, 200)}", "Mend or remove these rows.")
