"""Prompts that alone fill the window, so that no token of the answer is left."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import Facts, SeenRow


def prompt_fills(row: SeenRow, facts: Facts) -> bool:
    """Whether the prompt leaves no room for an answer."""
    if facts.rules.overlong in ("split", "truncate") and any(tokens.loss_tokens for tokens in row.tokens):
        return False  # of an earlier answer, or in a later window
    return row.overlong and row.prompt_length >= facts.rules.max_length


class PromptTooLong(Check):
    """Under `overlong: drop` such a row is left out, else training stops at it."""

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if prompt_fills(row, self.facts):
            self.hits.add(row)

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        rules = self.facts.rules
        dropped = rules.overlong == "drop"
        message = (f"{rows_phrase(self.hits.count, 'has a prompt that fills', 'have prompts that fill')} "
                   f"data.max_length, {rules.max_length:,} tokens, and "
                   + ("left out" if dropped else "no token of the answer is left"))
        message = message.replace(" and left out", f" and {'is' if self.hits.count == 1 else 'are'} left out")
        return self.found("prompt_too_long", "warning" if dropped else self.facts.refused, message,
                          "Raise data.max_length, shorten the prompts, or set data.overlong to drop."
                          if not dropped else "Raise data.max_length, or shorten the prompts.")
