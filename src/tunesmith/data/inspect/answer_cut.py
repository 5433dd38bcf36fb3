"""Rows longer than data.max_length whose prompt fits: the answer is cut, or the row is left out."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.prompt_too_long import prompt_fills
from tunesmith.data.inspect.seen import SeenRow


class AnswerCut(Check):
    """What the setting `data.overlong` makes of such rows decides how bad it is."""

    longest = 0

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if row.overlong and not prompt_fills(row, self.facts):
            self.hits.add(row)
            self.longest = max(self.longest, row.longest)

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        rules, count = self.facts.rules, self.hits.count
        longer = (f"{rows_phrase(count, 'is', 'are')} longer than data.max_length, {rules.max_length:,} "
                  f"tokens (the longest has {self.longest:,})")
        raise_it = f"Raise data.max_length to {self.longest:,}"
        if rules.overlong == "split":
            return self.found("split", "note", f"{longer}: cut into windows, so that no token is lost",
                              f"{raise_it}, so that each answer sees all that stands before it.")
        if rules.overlong == "truncate":
            return self.found(
                "answer_cut", "warning", f"{longer}: the answer is cut, and its end is not learnt",
                f"{raise_it}, shorten these rows, or set data.overlong to drop or split.")
        if rules.overlong == "error":
            return self.found("too_long", self.facts.refused, f"{longer}, and data.overlong is error",
                              f"{raise_it}, or set data.overlong to drop, truncate or split.")
        return self.found("too_long", "warning", f"{longer}: left out",
                          f"{raise_it} to keep them, or shorten them.")
