"""Text that was read in the wrong encoding once."""

from __future__ import annotations

from collections.abc import Iterable

import ftfy
from ftfy.badness import is_bad

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import Facts, SeenRow
from tunesmith.visible import on_one_line


class Mojibake(Check):
    """What ftfy would mend, and replacement characters, where the text is lost."""

    cheap = False

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.example = ""

    def see(self, row: SeenRow) -> None:  # noqa: D102
        for text in row.texts:
            if text.isascii() or not ("�" in text or (is_bad(text) and ftfy.fix_encoding(text) != text)):
                continue
            self.hits.add(row)
            self.example = self.example or _example(text)
            return

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        return self.found(
            "mojibake", "warning",
            f"{rows_phrase(self.hits.count, 'holds', 'hold')} text that was read in the wrong "
            f"encoding{self.example}",
            "Read the original again as UTF-8; where it is lost, ftfy.fix_text (pip install ftfy) mends most "
            "of it.")


def _example(text: str) -> str:
    """A word of it, before and after."""
    for word in text.split():
        if (mended := ftfy.fix_encoding(word)) != word:
            return f': "{on_one_line(word, 40)}" for "{on_one_line(mended, 40)}"'
    return ""
