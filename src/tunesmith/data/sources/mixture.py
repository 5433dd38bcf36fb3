"""Several sources as one: all rows of each, or, with weights, interleaved so that each has its share at any
point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

from tunesmith.data.rows import Row


def interleave(sources: Sequence[Iterator[Row]], weights: Sequence[float],
               ended: Callable[[int, list[int]], None] = lambda source, taken: None) -> Iterator[Row]:
    """Rows of all sources in the proportion of their weights, none of them twice, in an order that nothing
    but the weights decides.

    Each next row is of the source that is furthest behind its share, so that after n rows each has given its
    share of n, but for less than one row. The mixture ends where a source has no more rows when it is its
    turn: from there on no proportion could be kept. ended: receives which source that was, and how many rows
    of each there are.
    """
    shares = _whole_numbers(weights)
    total, taken = sum(shares), [0] * len(shares)
    position = 0
    while True:
        position += 1
        number = max(range(len(shares)), key=lambda i: (shares[i] * position - taken[i] * total, -i))
        row = next(sources[number], None)
        if row is None:
            ended(number, taken)
            return
        taken[number] += 1
        yield row


def _whole_numbers(weights: Sequence[float]) -> list[int]:
    """Numbers in the same proportion, so that no rounding decides whose turn it is."""
    fractions = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(each.denominator for each in fractions))
    return [int(each * scale) for each in fractions]
