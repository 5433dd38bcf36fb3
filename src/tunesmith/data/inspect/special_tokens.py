"""Texts that hold what a tokenizer, this one or another model's, takes for a special token."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import Facts, SeenRow

#: Special tokens and turn marks of other models: text that was made for one of them.
_KNOWN = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>",
          "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>",
          "[INST]", "[/INST]", "<<SYS>>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")


class SpecialTokensInText(Check):
    """What the recipe's own templates write is meant, and does not count."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.tokens: Counter[str] = Counter()
        texts = {*_KNOWN, *(text for text in facts.special_tokens if text.strip())}
        self._pattern = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))
        self._own = Counter(self._pattern.findall(facts.prompt_template + "\n" + facts.completion_template))

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if not self._pattern.search(row.text):
            return
        if tokens := Counter(self._pattern.findall(row.text)) - self._own:
            self.hits.add(row)
            self.tokens.update(tokens.keys())

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        named = ", ".join(token if token in self.facts.special_tokens else f"{token} (another model's)"
                          for token, _ in self.tokens.most_common(4))
        taken, advice = (
            ("which become special tokens", "Take it out of the data where it is not meant: in its place the "
             "model learns to begin, to end or to change the speaker.") if self.facts.rules.special_tokens
            else
            ("which become ordinary text, letter by letter", "Take it out of the data, or set "
             "data.special_tokens to true where it is meant as special tokens."))
        return self.found(
            "special_tokens_in_text", "warning",
            f"{rows_phrase(self.hits.count, 'holds', 'hold')} the text of special tokens: {named}, {taken}",
            advice)
