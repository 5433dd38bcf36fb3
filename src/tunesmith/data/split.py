"""Which examples are held out: decided by their content alone, so equal rows never sit on both sides."""

from __future__ import annotations

from tunesmith.data.examples import Example
from tunesmith.errors import DataError


def hold_out(examples: list[Example], amount: float | int) -> tuple[list[Example], list[Example]]:
    """(to learn from, held out), both in their first order.

    amount: a share below 1, or a count of rows. Groups of equal rows go to the held-out side in the order of
    their content's hash as long as they fit into the amount, so neither the seed nor the order of the file
    matters, and a row that is repeated often does not take all of it. Where no group fits, the smallest goes.
    Raises DataError when nothing would be left to learn from.
    """
    if amount == 0:
        return examples, []
    count = max(1, round(amount * len(examples))) if amount < 1 else int(amount)
    sizes: dict[str, int] = {}
    for example in examples:
        sizes[example.content_hash] = sizes.get(example.content_hash, 0) + 1
    held_out: set[str] = set()
    total = 0
    for content_hash in sorted(sizes):
        if total + sizes[content_hash] <= count:
            held_out.add(content_hash)
            total += sizes[content_hash]
    if not held_out:
        held_out.add(min(sizes, key=lambda content_hash: (sizes[content_hash], content_hash)))
    train = [e for e in examples if e.content_hash not in held_out]
    if not train:
        hint = ("Set it to 0 (nothing is held out), or to a source of its own." if len(sizes) == 1 else
                "Hold out fewer, or set data.validation to a source of its own.")
        raise DataError(f"{amount} of {len(examples)} rows held out leaves none to learn from", hint,
                        setting="data.validation")
    return train, [e for e in examples if e.content_hash in held_out]
