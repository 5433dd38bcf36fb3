"""Tokens of the chat template that bear loss although only answers should."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.inspect.end_not_learnt import learnt_runs
from tunesmith.data.inspect.finding import Check, Finding, Places
from tunesmith.data.inspect.seen import Facts, SeenRow
from tunesmith.data.tokenize import TokenRow


class TemplateLearnt(Check):
    """With `loss_on: completion` the last answer begins where the generation prompt ends, and ends with the
    stop token.
    """

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.learnt = self.all = 0

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if row.turns is None or not row.tokens:
            return
        if self.facts.rules.loss_on == "all":
            self.hits.add(row)
            self.learnt += len(self.facts.tokenizer(row.answer, add_special_tokens=False)["input_ids"])
            self.all += sum(tokens.loss_tokens for tokens in row.tokens)
        elif any(self._holds_template(tokens, row.overlong) for tokens in row.tokens):
            self.hits.add(row)

    def _holds_template(self, tokens: TokenRow, cut: bool) -> bool:
        runs = learnt_runs(tokens)
        if not runs:
            return False
        first, last = runs[-1]
        prompt = tokens.prompt_ids
        if tokens.ids[:len(prompt)] == prompt and first < len(prompt):
            return True
        stops = [place for place in range(first, last) if tokens.ids[place] in self.facts.stop_ids]
        return bool(stops) and stops[0] != last - 1 and not cut

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        if self.facts.rules.loss_on == "all":
            return self.found(
                "template_learnt", "note",
                "data.loss_on is all: besides the answers, the model learns the chat template's text and "
                "what the user says", "Set data.loss_on to completion, so that only the answers are learnt.")
        return self.found(
            "template_learnt", "error",
            f"in {self.hits.count:,} row{'s' if self.hits.count > 1 else ''} tokens bear loss that the chat "
            "template writes, not the model", "Take another chat template, or another base.")
