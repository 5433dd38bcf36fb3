"""Tokens beyond the rows of the base's embedding."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import Facts, SeenRow


class UnknownTokens(Check):
    """The tokenizer is another model's, or tokens were added to it and not to the base."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.highest = 0

    def see(self, row: SeenRow) -> None:  # noqa: D102
        highest = max((max(tokens.ids, default=0) for tokens in row.tokens), default=0)
        if self.facts.embedding_rows is not None and highest >= self.facts.embedding_rows:
            self.hits.add(row)
            self.highest = max(self.highest, highest)

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        return self.found("unknown_token", "error",
                          f"{rows_phrase(self.hits.count, 'has a token', 'have tokens')} that the base has "
                          "no embedding "
                          f"for: number {self.highest:,}, the embedding has "
                          f"{self.facts.embedding_rows or 0:,} rows",
                          "Take the tokenizer that belongs to this base, and no tokens that were added to "
                          "it.")
