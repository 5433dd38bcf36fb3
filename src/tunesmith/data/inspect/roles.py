"""Conversations whose roles are missing or out of order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import dropwhile, pairwise

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import Facts, SeenRow, Turn

_SYSTEM = ("system", "developer")


def out_of_order(turns: tuple[Turn, ...]) -> str | None:
    """What is wrong with the order of these turns, if anything."""
    rest = list(dropwhile(lambda turn: turn.role in _SYSTEM, turns))
    if any(turn.role in _SYSTEM for turn in rest):
        return "a system turn stands after others"
    if not rest:
        return "there is neither user nor assistant"
    if all(turn.role != "user" for turn in rest):
        return "no turn is the user's"
    if rest[0].role != "user":
        return f"the {rest[0].role} speaks first"
    for before, after in pairwise(rest):
        if after.role == "user" and before.role == "user":
            return "the user speaks twice in a row"
        if after.role == "assistant" and before.role == "assistant":
            return "the assistant speaks twice in a row"
        if after.role == "tool" and before.role == "user":
            return "a tool answers the user"
        if before.role == "tool" and after.role == "user":
            return "the user speaks where the assistant should read a tool's answer"
    return "the user has the last word" if rest[-1].role == "user" else None


class Roles(Check):
    """User and assistant take turns, the user first; tools answer the assistant."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.reasons: Counter[str] = Counter()

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if row.turns is not None and (reason := out_of_order(row.turns)):
            self.hits.add(row)
            self.reasons[reason] += 1

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        named = "; ".join(f"{reason} ({count:,})" for reason, count in self.reasons.most_common(4))
        return self.found(
            "roles", "warning",
            f"{rows_phrase(self.hits.count, 'has', 'have')} roles that are missing or out of order: {named}",
            "Mend or remove these conversations: the model is asked in another order than it learns.")
