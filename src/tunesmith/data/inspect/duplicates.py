"""Rows that say exactly the same, among the training rows, among the held-out rows, and across."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

from tunesmith.data.inspect.finding import Check, Finding, Hits, Places, rows_phrase
from tunesmith.data.inspect.seen import Facts, SeenRow


class Duplicates(Check):
    """Rows are compared by a hash of 64 bits of what they say."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.hashes, self.held_out = array("Q"), array("b")

    def see(self, row: SeenRow) -> None:  # noqa: D102
        self.hashes.append(row.content_hash)
        self.held_out.append(row.held_out)

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        if not len(self.hashes):
            return
        hashes, held_out = np.frombuffer(self.hashes, np.uint64), np.frombuffer(self.held_out, np.int8)
        order = np.argsort(hashes, kind="stable")
        first = np.r_[True, hashes[order][1:] != hashes[order][:-1]]
        original = np.empty(len(order), np.int64)
        original[order] = order[first][np.cumsum(first) - 1]  # the first row of each that says the same
        repeats = np.flatnonzero(original != np.arange(len(original)))
        across = (held_out[repeats] == 1) & (held_out[original[repeats]] == 0)
        yield from self._within(repeats[~across], original, places)
        yield from self._across(places.hits(repeats[across]))

    def _within(self, repeats: np.ndarray, original: np.ndarray, places: Places) -> Iterable[Finding]:
        hits = places.hits(repeats)
        example = (f" ({hits.rows[0]} says the same as {places[int(original[repeats[0]])]})" if hits.count
                   else "")
        yield from self.found(
            "duplicates", "warning",
            f"{rows_phrase(hits.count, 'repeats', 'repeat')} an earlier row word for word{example}",
            "Remove the repeats, unless these rows are meant to weigh more.", hits)

    def _across(self, hits: Hits) -> Iterable[Finding]:
        yield from self.found(
            "held_out_duplicates", "error",
            f"{rows_phrase(hits.count, 'is held out and also stands', 'are held out and also stand')} among "
            "the training rows: the verdict would be on rows that were learnt", "Remove them from one side.",
            hits)
        if self.facts.repeated:
            count = self.facts.repeated
            yield Finding(
                "held_out_duplicates", "warning", count, (),
                f"{rows_phrase(count, 'of data.source also stands', 'of data.source also stand')} in "
                "data.validation, and "
                f"{'is' if count == 1 else 'are'} left out of training",
                "Nothing needs to be done; to train on "
                "them, take them out of data.validation.")
