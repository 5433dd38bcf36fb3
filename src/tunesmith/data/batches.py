"""One step's samples, sorted by length and cut where that costs least."""

from __future__ import annotations

from collections.abc import Sequence


def plan_micro_batches(lengths: Sequence[int], *, rows: int | None, max_tokens: int, overhead_tokens: int,
                       padded: bool = True) -> list[list[int]]:
    """Cut one step's samples into micro-batches; returns the indices of each.

    The samples are sorted by length, longest first. A number of `rows` cuts them evenly. Without one, the cut
    is the contiguous partition with the least tokens, where each micro-batch costs `overhead_tokens` more,
    and none holds more than `max_tokens` (a single longer row stands alone). padded: whether each sample of a
    micro-batch counts as many tokens as its longest.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if rows is not None:
        return [order[i:i + rows] for i in range(0, len(order), rows)]
    # best[i]: the least cost of cutting the first i samples; start[i]: where its last micro-batch begins.
    best, start = [0.0] + [float("inf")] * len(order), [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        whole = 0
        for begin in range(end - 1, -1, -1):
            whole = whole + lengths[order[begin]]
            tokens = lengths[order[begin]] * (end - begin) if padded else whole
            if tokens > max_tokens and end - begin > 1:
                break
            cost = best[begin] + tokens + overhead_tokens
            if cost < best[end]:
                best[end], start[end] = cost, begin
    micro_batches, end = [], len(order)
    while end:
        micro_batches.append(order[start[end]:end])
        end = start[end]
    return micro_batches[::-1]
