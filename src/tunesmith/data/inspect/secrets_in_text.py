"""Keys, tokens and passwords in the data, by the patterns that `tunesmith push` refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import Facts, SeenRow
from tunesmith.secrets import secrets_in


class SecretsInText(Check):
    """A model can be made to say what it was trained on. The secret itself is not repeated."""

    cheap = False

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.kinds: Counter[str] = Counter()

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if kinds := secrets_in(row.text):
            self.hits.add(row)
            self.kinds.update(kinds)

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        named = ", ".join(f"{kind} ({count:,})" for kind, count in self.kinds.most_common(5))
        return self.found("secrets", "warning",
                          f"{rows_phrase(self.hits.count, 'holds', 'hold')} what looks like a "
                          f"secret: {named}",
                          "Take them out, and revoke those that are real: a model can repeat what it was "
                          "trained on.")
