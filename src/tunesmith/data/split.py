"""Which examples are held out: decided by their content alone, so equal rows never sit on both sides."""

from __future__ import annotations

import numpy as np

from tunesmith.data.examples import Example
from tunesmith.errors import DataError

#: The hash of an example's content, as bytes.
HASH = np.dtype("V32")


def hashes_of(examples: list[Example]) -> np.ndarray:
    """The hash of each example's content."""
    content = b"".join(bytes.fromhex(example.content_hash) for example in examples)
    return np.frombuffer(content, dtype=HASH)


def hold_out(examples: list[Example], amount: float | int) -> tuple[list[Example], list[Example]]:
    """(to learn from, held out), both in their first order. As `held_out_by`."""
    held_out = held_out_by(hashes_of(examples), amount)
    return ([example for example, held in zip(examples, held_out, strict=True) if not held],
            [example for example, held in zip(examples, held_out, strict=True) if held])


def held_out_by(hashes: np.ndarray, amount: float | int) -> np.ndarray:
    """Of each example whether it is held out, by the hashes of their content.

    amount: a share below 1, or a count of rows. Groups of equal rows go to the held-out side in the order of
    their content's hash as long as they fit into the amount, so neither the seed nor the order of the file
    matters, and a row that is repeated often does not take all of it. Where no group fits, the smallest goes.
    Raises DataError when nothing would be left to learn from.
    """
    if amount == 0:
        return np.zeros(len(hashes), dtype=np.bool_)
    count = max(1, round(amount * len(hashes))) if amount < 1 else int(amount)
    groups, sizes = _groups(hashes)
    held_groups = np.zeros(len(sizes), dtype=np.bool_)
    total = 0
    for group, size in enumerate(sizes.tolist()):
        if total + size <= count:
            held_groups[group] = True
            total += size
            if total == count:
                break
    if not total:
        held_groups[int(np.argmin(sizes))] = True
    held_out: np.ndarray = held_groups[groups]
    if held_out.all():
        hint = ("Set it to 0 (nothing is held out), or to a source of its own." if len(sizes) == 1 else
                "Hold out fewer, or set data.validation to a source of its own.")
        raise DataError(f"{amount} of {len(hashes)} rows held out leaves none to learn from", hint,
                        setting="data.validation")
    return held_out


def _groups(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(each example's group of equal ones, the groups' sizes); groups in the order of their hashes.

    Half of a hash tells them apart: 16 bytes a row.
    """
    first, second = _halves(hashes)
    order = np.lexsort((second, first))
    begins = np.ones(len(order), dtype=np.bool_)
    begins[1:] = (np.diff(first[order]) != 0) | (np.diff(second[order]) != 0)
    numbers = np.cumsum(begins) - 1
    groups = np.empty(len(order), dtype=np.int64)
    groups[order] = numbers
    return groups, np.bincount(numbers)


def _halves(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    words = np.frombuffer(hashes.tobytes(), dtype=">u8").reshape(-1, 4)
    return words[:, 0].astype(np.uint64), words[:, 1].astype(np.uint64)


def stands_in(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of each example whether one of the others is equal."""
    groups, _ = _groups(np.concatenate([hashes, others]))
    seen = np.zeros(int(groups.max(initial=-1)) + 1, dtype=np.bool_)
    seen[groups[len(hashes):]] = True
    stands: np.ndarray = seen[groups[:len(hashes)]]
    return stands
