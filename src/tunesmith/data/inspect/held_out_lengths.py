"""Held-out rows that are longer or shorter than the training rows."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable

import numpy as np

from tunesmith.data.inspect.finding import Check, Finding, Places
from tunesmith.data.inspect.seen import Facts, SeenRow

#: Fewer rows on a side show nothing.
_FEWEST = 10
#: The largest distance of the two distributions that is of no interest; and how sure it must be that there is
#: one (Kolmogorov and Smirnov; 2.2 is a probability of about 1 in 8,000).
_DISTANCE, _SURE = 0.25, 2.2


class HeldOutLengths(Check):
    """Compares the distributions of the rows' lengths in tokens."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.lengths = {False: array("I"), True: array("I")}

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if row.tokens:
            self.lengths[row.held_out].append(min(row.longest, 2**32 - 1))

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        train, held_out = (np.sort(np.array(self.lengths[side], np.int64)) for side in (False, True))
        if min(len(train), len(held_out)) < _FEWEST:
            return []
        values = np.unique(held_out)
        distance = max(
            float(np.abs(np.searchsorted(train, values, side) / len(train)
                         - np.searchsorted(held_out, values, side) / len(held_out)).max())
            for side in ("left", "right"))
        sure = _SURE * math.sqrt(1 / len(train) + 1 / len(held_out))
        if distance <= max(_DISTANCE, sure):
            return []
        return [Finding(
            "held_out_lengths", "warning", len(held_out), (),
            "the held-out rows have other lengths than the training rows: a median of "
            f"{np.median(held_out):,.0f} tokens, those {np.median(train):,.0f}",
            "Hold out a share of the same rows (data.validation: 0.05), or take both from one source.")]
