"""One step's samples, sorted by length, cut where that costs least, and padded into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tunesmith.data.tokenize import TokenRow

IGNORED = -100


@dataclass(frozen=True)
class MicroBatch:
    """Rows that are computed together. B rows padded on the right to T tokens.

    input_ids_BT, attention_mask_BT: int64. labels_BT: int64, IGNORED where no loss is borne (padding by the mask, never
    by the token's value, so a pad token that is also the end token is still learnt).
    """

    input_ids_BT: torch.Tensor
    attention_mask_BT: torch.Tensor
    labels_BT: torch.Tensor
    tokens: int


def cut_step(lengths: Sequence[int], *, rows: int | None, max_tokens: int, overhead_tokens: int) -> list[list[int]]:
    """Cut one step's samples into micro-batches; returns the indices of each.

    The samples are sorted by length, longest first. A number of `rows` cuts them evenly. Without one, the cut is the
    contiguous partition with the least padded tokens, where each micro-batch costs `overhead_tokens` more, and none
    holds more than `max_tokens` padded tokens (a single longer row stands alone).
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if rows is not None:
        return [order[i:i + rows] for i in range(0, len(order), rows)]
    # best[i]: the least cost of cutting the first i samples; start[i]: where its last micro-batch begins.
    best, start = [0.0] + [float("inf")] * len(order), [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        for begin in range(end - 1, -1, -1):
            padded = lengths[order[begin]] * (end - begin)
            if padded > max_tokens and end - begin > 1:
                break
            cost = best[begin] + padded + overhead_tokens
            if cost < best[end]:
                best[end], start[end] = cost, begin
    cuts, end = [], len(order)
    while end:
        cuts.append(order[start[end]:end])
        end = start[end]
    return cuts[::-1]


def collate(rows: Sequence[TokenRow], pad_id: int) -> MicroBatch:
    """Pad rows on the right to the longest."""
    width = max(len(row.ids) for row in rows)
    input_ids_BT = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    attention_mask_BT = torch.zeros((len(rows), width), dtype=torch.int64)
    labels_BT = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids = torch.tensor(row.ids, dtype=torch.int64)
        learnt = torch.tensor(row.learnt, dtype=torch.bool)
        input_ids_BT[i, : len(ids)] = ids
        attention_mask_BT[i, : len(ids)] = 1
        labels_BT[i, : len(ids)] = torch.where(learnt, ids, IGNORED)
    return MicroBatch(input_ids_BT, attention_mask_BT, labels_BT, sum(len(row.ids) for row in rows))
