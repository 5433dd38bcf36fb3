"""Rows in which no token bears loss."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import SeenRow


def nothing_to_learn(row: SeenRow) -> bool:
    """Whether a row has no token to learn from, and its length is not the reason."""
    no_answer = row.turns is not None and all(turn.role != "assistant" for turn in row.turns)
    return no_answer or (bool(row.tokens) and not row.overlong
                         and not any(tokens.loss_tokens for tokens in row.tokens))


class NothingToLearn(Check):
    """Training stops at such a row."""

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if nothing_to_learn(row):
            self.hits.add(row)

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        return self.found(
            "nothing_to_learn", self.facts.refused,
            f"{rows_phrase(self.hits.count, 'has', 'have')} no token to learn from: the answer is empty or "
            "missing",
            "Remove these rows, or give them an answer.")
