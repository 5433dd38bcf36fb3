"""Equal prompts with different answers."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

from tunesmith.data.inspect.finding import Check, Finding, Places
from tunesmith.data.inspect.seen import Facts, SeenRow, short_hash

#: Answers shorter than this on average [characters] are labels: two of them for one prompt are a
#: contradiction.
_LABEL = 60
#: A prompt that stands in more than this share of the rows asks for variety.
_COMMON = 0.2


class LabelNoise(Check):
    """Prompts are equal when they differ at most in case and in white space."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.prompts, self.answers, self.lengths = array("Q"), array("Q"), array("L")

    def see(self, row: SeenRow) -> None:  # noqa: D102
        self.prompts.append(short_hash(_plain(row.question)))
        self.answers.append(short_hash(_plain(row.answer)))
        self.lengths.append(len(row.answer))

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        if not len(self.prompts):
            return []
        prompts, answers = np.frombuffer(self.prompts, np.uint64), np.frombuffer(self.answers, np.uint64)
        _, group, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
        pairs = np.unique(np.stack([group.astype(np.uint64), answers]), axis=1)
        different = np.bincount(pairs[0].astype(np.int64), minlength=len(sizes))
        noisy = (different > 1) & (sizes <= max(2, _COMMON * len(prompts)))
        noisy[np.unique(group[prompts == short_hash("")])] = False  # texts without a prompt
        rows = np.flatnonzero(noisy[group])
        hits = places.hits(rows)
        labels = len(rows) and np.frombuffer(self.lengths, np.dtype("L"))[rows].mean() < _LABEL
        return self.found(
            "label_noise", "warning" if labels else "note",
            f"{hits.count:,} rows share their prompt with a row that has another answer "
            f"({int(noisy.sum()):,} prompt{'s' if noisy.sum() > 1 else ''})",
            "Decide for one answer, or give the prompt what tells these rows apart." if labels else
            "Fine where several answers are right; else decide for one.", hits)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
