"""Rows that are computed together, padded on the right into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tunesmith.model.dropout import token_keys
from tunesmith.model.engine import MaskedRow

IGNORED = -100


@dataclass(frozen=True)
class MicroBatch:
    """Rows that are computed together. B rows padded on the right to T tokens.

    input_ids_BT, attention_mask_BT: int64. labels_BT: int64, IGNORED where no loss is borne (padding by the
    mask, never by the token's value, so a pad token that is also the end token is still learnt).
    """

    input_ids_BT: torch.Tensor
    attention_mask_BT: torch.Tensor
    labels_BT: torch.Tensor


def collate(rows: Sequence[MaskedRow], pad_id: int) -> MicroBatch:
    """Pad rows on the right to the longest."""
    width = max(len(row.ids) for row in rows)
    input_ids_BT = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    attention_mask_BT = torch.zeros((len(rows), width), dtype=torch.int64)
    labels_BT = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids = torch.tensor(row.ids, dtype=torch.int64)
        loss_mask = torch.tensor(row.loss_mask, dtype=torch.bool)
        input_ids_BT[i, : len(ids)] = ids
        attention_mask_BT[i, : len(ids)] = 1
        labels_BT[i, : len(ids)] = torch.where(loss_mask, ids, IGNORED)
    return MicroBatch(input_ids_BT, attention_mask_BT, labels_BT)


def padded_keys(rows: Sequence[MaskedRow], dropout_seeds: Sequence[int]) -> torch.Tensor:
    """The dropout key of each token [B, T], int64, as `collate` lays the rows; 0 for padding."""
    lengths = [len(row.ids) for row in rows]
    keys_BT = torch.zeros((len(rows), max(lengths)), dtype=torch.int64)
    keys = torch.from_numpy(token_keys(dropout_seeds, lengths, sum(lengths)))
    for i, part in enumerate(keys.split(lengths)):
        keys_BT[i, :len(part)] = part
    return keys_BT
