"""Answers after which the end token bears no loss: the model never learns to stop."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import SeenRow
from tunesmith.data.tokenize import TokenRow

#: With `loss_on: all`, how many tokens of a template's own, such as a line break, may stand behind the end
#: token.
_BEHIND_END = 4


def learnt_runs(tokens: TokenRow) -> list[tuple[int, int]]:
    """The stretches of tokens that bear loss: first, and one beyond the last."""
    runs, mask = [], tokens.loss_mask
    position = 0
    while position < len(mask):
        try:
            first = mask.index(True, position)
        except ValueError:
            break
        try:
            position = mask.index(False, first)
        except ValueError:
            position = len(mask)
        runs.append((first, position))
    return runs


class EndNotLearnt(Check):
    """The last token of what is learnt has to be one at which generation stops."""

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if row.overlong or not self.facts.stop_ids:
            return
        for tokens in row.tokens:
            runs = learnt_runs(tokens)
            if self.facts.rules.loss_on == "all":  # what ends within the row is not told apart
                end = {tokens.ids[at] for at in range(max(0, len(tokens.ids) - _BEHIND_END), len(tokens.ids))}
                runs = [] if end & set(self.facts.stop_ids) else runs[-1:]
            if any(tokens.ids[last - 1] not in self.facts.stop_ids for _, last in runs):
                self.hits.add(row)
                return

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        tokenizer, chosen = self.facts.tokenizer, not self.facts.rules.append_eos
        end = tokenizer.eos_token
        same = (" (it is also the pad token, which Tunesmith does not leave out of the loss)"
                if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id
                else "")
        message = (f"{rows_phrase(self.hits.count, 'does', 'do')} not end with a token at which generation "
                   f"stops, such as {end}{same}")
        if chosen:
            return self.found("end_not_learnt", "warning",
                              f"{message}: data.append_eos is false, so answers will not end by themselves",
                              "Set data.append_eos to true, unless answers are cut by other means.")
        return self.found("end_not_learnt", "error", f"{message}: answers will not end by themselves",
                          "The chat template has to close the assistant's turn with the base's end token; "
                          "take another template or base, or set eos_token_id in its generation_config.json.")
