"""What a sample's dropout is drawn from: the run's seed, the sample's number, the token's position.

So a mask depends on the experiment alone: not on how a step is cut into micro-batches, which samples share
one, or which engine runs. Hashed with SplitMix64's finaliser (Steele, Lea and Flood 2014,
https://doi.org/10.1145/2714064.2660195).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

#: 2**64 over the golden ratio: SplitMix64's increment.
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def sample_seeds(seed: int, first: int, count: int) -> list[int]:
    """The dropout seeds (unsigned, 64 bits) of the samples numbered `first` ... `first + count - 1`.

    A sample's number counts every sample since the run began, so it stands for the step and the place in the
    step, and a row that comes again in a later epoch is dropped otherwise.
    """
    start = _mix(np.array([seed & _MASK], dtype=np.uint64))
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return [int(value) for value in _mix(start + numbers * np.uint64(_GOLDEN))]


def token_keys(seeds: Sequence[int], lengths: Sequence[int], total: int) -> npt.NDArray[np.int64]:
    """The dropout key of each token [total], int64, of samples laid one after another; 0 for padding.

    seeds: of each sample, see `sample_seeds`. lengths: its tokens.
    """
    keys = np.zeros(total, dtype=np.uint64)
    counts = np.asarray(lengths, dtype=np.int64)
    filled = int(counts.sum())
    starts = np.concatenate([[0], counts.cumsum()[:-1]])
    places = (np.arange(filled) - starts.repeat(counts) + 1).astype(np.uint64)
    keys[:filled] = _mix(np.asarray(seeds, dtype=np.uint64).repeat(counts) + places * np.uint64(_GOLDEN))
    return keys.view(np.int64)


def require_seeds(seeds: Sequence[int] | None) -> Sequence[int]:
    """The seeds. Raises ValueError for None: an adapter with dropout is never silently trained without."""
    if seeds is None:
        raise ValueError("the adapter has dropout, and nothing says what it is drawn from (dropout_seeds)")
    return seeds


def module_salt(name: str) -> int:
    """What tells the dropout of a module from every other's: a hash (32 bits) of its full name."""
    return zlib.crc32(name.encode())


def _mix(h: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser, element by element."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))
