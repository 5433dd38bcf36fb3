"""Samples one after another without padding, as tensors: what the native engine computes on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from tunesmith.model.dropout import token_keys
from tunesmith.model.engine import MaskedRow
from tunesmith.model.native.kernels.formats import IGNORED


@dataclass(frozen=True)
class PackedBatch:
    """A packed batch of N tokens, of which L bear loss; B samples. Padding, if any, stands at the end.

    ids_N, positions_N: token ids and places within the sample, int64. first_key_WN, last_query_WN: under each
    of the decoder's windows, the earliest key that a token sees and the latest query that sees it, int32,
    both monotonic; a token of padding sees itself alone. loss_positions_L: where in the batch the next token
    bears loss; targets_L: that token, IGNORED in padding; sample_L: whose. spans: where each sample begins
    and ends (padding is the last), on the host, for the plain path alone. length: of every sample where all
    have the same and nothing is padded; else 0. dropout_keys_N: what each token's dropout is drawn from,
    int64; None where nothing is dropped. See `model.dropout`. lengths_N: of each token's sample, int64, where
    the decoder asks for them.
    """

    ids_N: torch.Tensor
    positions_N: torch.Tensor
    first_key_WN: torch.Tensor
    last_query_WN: torch.Tensor
    loss_positions_L: torch.Tensor
    targets_L: torch.Tensor
    sample_L: torch.Tensor
    samples: int
    spans: tuple[tuple[int, int], ...]
    length: int
    dropout_keys_N: torch.Tensor | None = None
    lengths_N: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by field."""
        return {field.name: getattr(self, field.name) for field in fields(self)
                if isinstance(getattr(self, field.name), torch.Tensor)}

    def to(self, device: torch.device) -> PackedBatch:
        """The same on a device, without waiting for it."""
        if device.type == "cpu":
            return self
        moved = {name: tensor.pin_memory().to(device, non_blocking=True)
                 for name, tensor in self.tensors().items()}
        return PackedBatch(**moved, samples=self.samples, spans=self.spans, length=self.length)


def round_up(count: int, bucket: int) -> int:
    """The next multiple of `bucket`."""
    return -(-count // bucket) * bucket


def pack(rows: Sequence[MaskedRow], *, bucket: int = 1, windows: Sequence[int | None] = (None,),
         lengths: bool = False, dropout_seeds: Sequence[int] | None = None) -> PackedBatch:
    """Lay rows one after another.

    bucket: N and L are padded to multiples of it, L to more than it has. windows: how many tokens back a
    token sees at most, itself counted, of each kind of layer. lengths: give `lengths_N`. dropout_seeds: of
    each row, where something is to be dropped.
    """
    row_lengths = np.array([len(row.ids) for row in rows])
    total = int(row_lengths.sum())
    padded = round_up(total, bucket)
    ids = np.zeros(padded, np.int64)
    ids[:total] = np.concatenate([np.asarray(row.ids, np.int64) for row in rows])
    starts = np.concatenate([[0], row_lengths.cumsum()])
    index = np.arange(padded)
    begin, end = index.copy(), index.copy()
    begin[:total] = starts[:-1].repeat(row_lengths)
    end[:total] = (starts[1:] - 1).repeat(row_lengths)
    first = np.stack([begin if window is None else np.maximum(begin, index - window + 1)
                      for window in windows])
    last = np.stack([end if window is None else np.minimum(end, index + window - 1) for window in windows])
    # A token's loss stands at the position before it; the first of a sample has nothing before it.
    loss_mask = np.concatenate([np.asarray(row.loss_mask, bool) for row in rows])
    loss_mask[starts[:-1]] = False
    where = loss_mask.nonzero()[0] - 1
    # Where all but each sample's first token bears loss, L ends in the same bucket as N: one graph.
    width = round_up(len(where) + len(rows), bucket) if bucket > 1 else len(where)
    loss_positions_L, sample_L = np.zeros(width, np.int64), np.zeros(width, np.int64)
    targets_L = np.full(width, IGNORED, np.int64)
    loss_positions_L[:len(where)] = where
    targets_L[:len(where)] = ids[where + 1]
    sample_L[:len(where)] = np.arange(len(rows)).repeat(row_lengths)[where]
    length = int(row_lengths[0]) if padded == total and (row_lengths == row_lengths[0]).all() else 0
    spans = [(int(a), int(b)) for a, b in itertools.pairwise(starts)]
    if padded > total:
        spans.append((total, padded))
    return PackedBatch(
        torch.from_numpy(ids), torch.from_numpy(index - begin), torch.from_numpy(first.astype(np.int32)),
        torch.from_numpy(last.astype(np.int32)), torch.from_numpy(loss_positions_L),
        torch.from_numpy(targets_L), torch.from_numpy(sample_L), len(rows), tuple(spans), length,
        None if dropout_seeds is None
        else torch.from_numpy(token_keys(dropout_seeds, row_lengths.tolist(), padded)),
        torch.from_numpy(end - begin + 1) if lengths else None)
