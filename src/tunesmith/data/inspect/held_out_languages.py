"""Held-out rows in other languages than the training rows."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places
from tunesmith.data.inspect.seen import Facts, SeenRow

#: Rows of each side whose language is looked at, how much of each [characters], and fewer letters show
#: nothing.
_SAMPLE, _LONGEST, _FEWEST_LETTERS = 1000, 600, 20
#: Fewer rows on a side show nothing.
_FEWEST = 10
#: The largest difference of a language's share that is of no interest; and how sure it must be that there is
#: one [standard deviations].
_DIFFERENCE, _SURE = 0.2, 4.5


class HeldOutLanguages(Check):
    """Compares the languages of a sample of rows of each side, as py3langid names them."""

    cheap = False

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.samples: dict[bool, list[str]] = {False: [], True: []}
        self.seen = {False: 0, True: 0}
        self._random = random.Random(0)

    def see(self, row: SeenRow) -> None:  # noqa: D102
        sample = self.samples[row.held_out]
        self.seen[row.held_out] += 1
        if len(sample) < _SAMPLE:
            sample.append(row.text[:_LONGEST])
        elif (place := self._random.randrange(self.seen[row.held_out])) < _SAMPLE:
            sample[place] = row.text[:_LONGEST]

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        if min(map(len, self.samples.values())) < _FEWEST:
            return []
        train, held_out = (_languages(self.samples[side]) for side in (False, True))
        sizes = train.total(), held_out.total()
        if min(sizes) < _FEWEST:
            return []
        shares = {language: (train[language] / sizes[0], held_out[language] / sizes[1])
                  for language in train | held_out}
        language, (before, after) = max(shares.items(), key=lambda item: abs(item[1][1] - item[1][0]))
        pooled = (train[language] + held_out[language]) / sum(sizes)
        sure = _SURE * math.sqrt(pooled * (1 - pooled) * (1 / sizes[0] + 1 / sizes[1]))
        if abs(after - before) <= max(_DIFFERENCE, sure):
            return []
        return [Finding(
            "held_out_languages", "warning", self.seen[True], (),
            f"the held-out rows are in other languages than the training rows: {_named(held_out)}; training: "
            f"{_named(train)}",
            "Hold out a share of the same rows (data.validation: 0.05), or take both from one source.")]


def _languages(texts: list[str]) -> Counter[str]:
    import py3langid

    return Counter(py3langid.classify(text)[0] for text in texts
                   if sum(map(str.isalpha, text)) >= _FEWEST_LETTERS)


def _named(languages: Counter[str]) -> str:
    total = languages.total()
    return ", ".join(f"{language} {count / total:.0%}" for language, count in languages.most_common(3))
