"""One answer in all rows, or in most of them."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Hits, Places
from tunesmith.data.inspect.seen import Facts, SeenRow
from tunesmith.visible import on_one_line

#: Fewer rows than this show nothing.
_FEWEST = 8
#: From this share of the rows on it is a warning.
_MANY = 0.8


class ConstantAnswer(Check):
    """A model that always says it would seem good. The majority vote of Boyer and Moore finds the answer."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.answer, self.votes, self.rows = "", 0, 0
        self.counts: dict[str, Hits] = {}

    def see(self, row: SeenRow) -> None:  # noqa: D102
        answer = row.answer.strip()
        self.rows += 1
        if not self.votes:
            self.answer, self.votes = answer, 1
        else:
            self.votes += 1 if answer == self.answer else -1
        if answer in self.counts:
            self.counts[answer].add(row)
        elif len(self.counts) < 1000:  # an answer in most rows is among the first thousand different ones
            self.counts[answer] = Hits()
            self.counts[answer].add(row)

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        hits = self.counts.get(self.answer, self.hits)
        if self.rows < _FEWEST or 2 * hits.count <= self.rows or not self.answer:
            return []
        shown = on_one_line(self.answer, 60)
        if hits.count == self.rows:
            return self.found("constant_answer", "error", f'every row has the same answer: "{shown}"',
                              "Look at data.completion: does it name the column with the answer?", hits)
        share = hits.count / self.rows
        return self.found(
            "one_answer_in_most_rows", "warning" if share >= _MANY else "note",
            f'{share:.0%} of the rows have the same answer: "{shown}"',
            f"A model that always says this is right in {share:.0%}: keep fewer of these rows, and look at "
            "the others' answers when it is judged.", hits)
