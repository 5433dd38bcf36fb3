"""Beginning-of-text or end-of-text tokens that stand twice: once from the data, once from the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Hits, Places, rows_phrase
from tunesmith.data.inspect.seen import Facts, SeenRow

_ADVICE = ("Take {token} out of the text: the tokenizer adds it (find and replace it in the file, or in "
           "data.prompt and data.completion).")


class DoubledBeginning(Check):
    """The base has seen one such token at the beginning of a text, and one at its end."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.ends = Hits()

    def see(self, row: SeenRow) -> None:  # noqa: D102
        begin, end = self.facts.tokenizer.bos_token_id, self.facts.tokenizer.eos_token_id
        if begin is not None and any(tokens.ids[:2] == [begin, begin] for tokens in row.tokens):
            self.hits.add(row)
        if end is not None and not row.overlong and any(tokens.ids[-2:] == [end, end]
                                                        for tokens in row.tokens):
            self.ends.add(row)

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        for kind, word, token, hits in (
                ("doubled_beginning", "begin", self.facts.tokenizer.bos_token, self.hits),
                ("doubled_end", "end", self.facts.tokenizer.eos_token, self.ends)):
            yield from self.found(
                kind, "warning",
                f"{rows_phrase(hits.count, f'{word}s', word)} with {token} twice: the text has it "
                "already", _ADVICE.format(token=token), hits)
