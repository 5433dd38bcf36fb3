"""In which order the samples are seen: a fresh shuffle each epoch, a pure function of seed and position."""

from __future__ import annotations

import numpy as np


class SampleOrder:
    """The endless sequence of sample indices of a run.

    count: how many samples there are; every epoch is a permutation of them, drawn from (seed, epoch) alone,
    so a run that resumes at any position sees what the uninterrupted one would have.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def take(self, start: int, count: int) -> list[int]:
        """The indices at positions start ... start + count - 1 of the sequence."""
        return [self._at(position) for position in range(start, start + count)]

    def _at(self, position: int) -> int:
        epoch, within = divmod(position, self.count)
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            self._epoch = epoch
        return int(self._permutation[within])
