"""How many of a model's values are kept in how many bits: counted on the model, not taken from the recipe."""

from __future__ import annotations

import torch

from tunesmith.model.quantization import WAYS


def values_by_format(model: torch.nn.Module) -> dict[str, int]:
    """Values of a transformers model by how they are kept, its adapter aside; a tied weight counts once."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name or ".modules_to_save." in name:
            continue
        as_they_are = str(parameter.dtype).removeprefix("torch."), parameter.numel()
        kind, count = next(((way.name, held) for way in WAYS.values()
                            if (held := way.count(parameter)) is not None),
                           as_they_are)
        counts[kind] = counts.get(kind, 0) + count
    return counts
