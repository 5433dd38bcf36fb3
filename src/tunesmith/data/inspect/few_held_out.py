"""Held-out rows that are too few for a verdict."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places
from tunesmith.data.inspect.seen import Facts, SeenRow

#: An interval that reaches further to each side [standard deviations of the rows' changes] tells little.
_WIDE = 0.55
#: From so many different rows on it is narrow, and they are no longer counted.
_ENOUGH = 50


class FewHeldOut(Check):
    """Equal rows are one draw, and count once."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.different: set[int] = set()
        self.held_out = 0

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if row.held_out and row.tokens:
            self.held_out += 1
            if len(self.different) < _ENOUGH:
                self.different.add(row.content_hash)

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        count = len(self.different)
        if not count:
            return [Finding("few_held_out", "note", 0, (),
                            "nothing is held out, so nothing will say whether training "
                            "helped", "Set data.validation, for example to 0.05 or to a file.")]
        width = 0.0 if count >= _ENOUGH else self.facts.half_width(count)
        if width is not None and width <= _WIDE:
            return []
        rows = (f"{count:,} row{'s' if count > 1 else ''} held out" if count == self.held_out else
                f"{self.held_out:,} rows held out, of which {count:,} differ")
        return [Finding(
            "few_held_out", "warning", self.held_out, (),
            f"{rows}: " + ("too few for any interval" if width is None else
                           f"the interval of the change in loss is {width:.1f} standard deviations of the "
                           "rows' changes to each side, so that only a large change shows"),
            "Hold out at least 30 different rows, better 100 (data.validation).")]
