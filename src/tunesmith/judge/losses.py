"""Held-out loss, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tunesmith.data import TokenRow
from tunesmith.data.batches import plan_micro_batches
from tunesmith.data.token_rows import lengths_of, loss_tokens_of
from tunesmith.errors import OutOfMemory
from tunesmith.model.engine import Engine
from tunesmith.model.memory import in_parts
from tunesmith.model.quantization import smallest


@dataclass(frozen=True)
class RowLosses:
    """For each held-out row its summed loss [nats] and how many tokens bear it."""

    nats: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> float:
        """Nats a loss-bearing token over all rows."""
        return float(self.nats.sum() / self.tokens.sum())


@torch.no_grad()
def row_losses(engine: Engine, rows: Sequence[TokenRow], *, max_tokens: int = 2048) -> RowLosses:
    """The loss of each row, in the order of `rows`. The engine must be out of training.

    max_tokens: tokens computed at once; fewer when memory runs out. Raises OutOfMemory when a row alone does
    not fit.
    """
    nats = np.zeros(len(rows))
    micro_batches = plan_micro_batches(lengths_of(rows), rows=None, max_tokens=max_tokens,
                                       overhead_tokens=64, padded=engine.padded)

    def too_large(row: int) -> OutOfMemory:
        return OutOfMemory(f"a held-out row of {len(rows[row].ids)} tokens alone "
                           "does not fit in the GPU's memory",
                           f"Lower data.max_length, quantise the base ({smallest()}), or take a smaller one.")

    for indices, losses in in_parts(
            micro_batches, lambda part: engine.losses([rows[i] for i in part]).cpu(), too_large):
        nats[indices] = losses.numpy()
    return RowLosses(nats, loss_tokens_of(rows))
