"""Weights as they are, in the dtype that is computed in."""

from __future__ import annotations

import torch


def config(dtype: torch.dtype) -> None:
    """No quantisation."""
    return


def prepare(model: torch.nn.Module) -> None:
    """Nothing to mend."""
