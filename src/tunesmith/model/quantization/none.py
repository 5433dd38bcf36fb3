"""Weights as they are, in the dtype that is computed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.model.quantization.way import Way

if TYPE_CHECKING:
    import torch


class AsTheyAre(Way):
    """No quantisation: a checkpoint's weights, cast to the dtype of the products."""

    name = "none"
    quantised = False
    loading_code = 'dtype="auto"'

    def is_whole(self, layer: torch.nn.Module) -> bool | None:
        """Whether the weight is of floats; asked last, of layers that no other way keeps."""
        weight = getattr(layer, "weight", None)
        return None if weight is None else weight.dtype.is_floating_point and weight.dtype.itemsize > 1
