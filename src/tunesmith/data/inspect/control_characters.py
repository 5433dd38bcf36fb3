"""Control characters, marks that turn the direction of writing, and characters without width."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import Facts, SeenRow

#: Joiners (U+200C, U+200D) are part of scripts and of emoji; tags (U+E0020 ...) only where no flag precedes.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2028\u2029\u202a-\u202e\u2060-\u2064\u2066-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0001]|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0020-\U000e007f]"
)
_MARKS = re.compile("[\u200e\u200f\u061c]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")


class ControlCharacters(Check):
    """Marks of direction belong to text from right to left, and count only elsewhere."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.characters: Counter[str] = Counter()

    def see(self, row: SeenRow) -> None:  # noqa: D102
        text = row.text
        if text.isascii() and text.isprintable():
            return
        found = set(_HIDDEN.findall(text))
        if not text.isascii() and not _RIGHT_TO_LEFT.search(text):
            found.update(_MARKS.findall(text))
        if found:
            self.hits.add(row)
            self.characters.update(found)

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        named = ", ".join(f"U+{ord(character):04X}" for character, _ in self.characters.most_common(5))
        return self.found(
            "control_characters", "warning",
            f"{rows_phrase(self.hits.count, 'holds', 'hold')} control, direction or invisible characters: "
            f"{named}",
            "Take them out: they are learnt like any other text, and a reader does not see them.")
