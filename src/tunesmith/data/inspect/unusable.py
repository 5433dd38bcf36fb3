"""Rows that cannot be read, and rows that cannot become tokens, such as messages that the chat template
refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunesmith.data.inspect.finding import PLACES, Check, Finding, Places, Severity, rows_phrase
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
        return self.found("unusable_row", self.facts.refused,
                          f"{rows_phrase(self.hits.count, 'cannot', 'cannot')} be used: "
                          f"{on_one_line(self.reason, 200)}", "Mend or remove these rows.")


def bad_rows(count: int, first: Sequence[str], severity: Severity) -> list[Finding]:
    """The finding of rows that no example could be made of. first: where the first are, and what is wrong."""
    if not count:
        return []
    advice = ("They are left out (data.bad_rows: skip)." if severity == "warning" else
              "Mend or remove these rows, or set data.bad_rows to skip: training stops at the first of them.")
    return [Finding("bad_row", severity, count, tuple(first[:PLACES]),
                    f"{rows_phrase(count, 'cannot', 'cannot')} be read", advice)]
