"""Texts that hold what the tokenizer takes for a special token."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import Facts, SeenRow


class SpecialTokensInText(Check):
    """What the recipe's own templates write is meant, and does not count."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.tokens: Counter[str] = Counter()
        texts = sorted((text for text in facts.special_tokens if text.strip()), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
        self._own = Counter(self._pattern.findall(facts.prompt_template + "\n" + facts.completion_template)
                            if self._pattern else ())

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if self._pattern is None or not self._pattern.search(row.text):
            return
        if tokens := Counter(self._pattern.findall(row.text)) - self._own:
            self.hits.add(row)
            self.tokens.update(tokens.keys())

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        named = ", ".join(token for token, _ in self.tokens.most_common(4))
        return self.found(
            "special_tokens_in_text", "warning",
            f"{rows_phrase(self.hits.count, 'holds', 'hold')} text that this tokenizer takes for a special "
            f"token: {named}",
            "Take it out of the data, or write it another way: in a special token's place the model "
            "learns to begin, end or change the speaker.")
