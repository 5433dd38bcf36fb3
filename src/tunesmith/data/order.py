"""In which order the samples are seen: a fresh shuffle each epoch, a pure function of seed and position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batches:
    """Which samples each optimiser step takes from the sequence.

    batch_size: samples a step. epochs: the length of the run in passes over `count` samples, of which the
    last may be a part: then every epoch ends with its rows, so its last batch may be smaller. None: batches
    run on across epochs.
    """

    count: int
    batch_size: int
    epochs: float | None = None

    @property
    def total_samples(self) -> int | None:
        """How many samples the run takes; None where its steps are counted."""
        return None if self.epochs is None else max(1, round(self.epochs * self.count))

    @property
    def total_steps(self) -> int | None:
        """How many steps that makes; None where they are counted."""
        if self.total_samples is None:
            return None
        whole, rest = divmod(self.total_samples, self.count)
        return whole * self._steps_an_epoch + math.ceil(rest / self.batch_size)

    @property
    def _steps_an_epoch(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def size_at(self, samples: int) -> int:
        """How many samples the step takes that begins after so many."""
        if self.total_samples is None:
            return self.batch_size
        return min(self.batch_size, self.count - samples % self.count, self.total_samples - samples)

    def samples_after(self, steps: int) -> int:
        """How many samples are taken after so many steps."""
        if self.total_samples is None:
            return steps * self.batch_size
        epochs, rest = divmod(steps, self._steps_an_epoch)
        return min(epochs * self.count + rest * self.batch_size, self.total_samples)


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
