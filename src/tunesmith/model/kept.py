"""How many of a model's values are kept in how many bits: counted on the model, not taken from the recipe."""

from __future__ import annotations

import torch

_BITS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float64: "float64",
         torch.int8: "int8", torch.uint8: "uint8"}


def kept_values(model: torch.nn.Module) -> dict[str, int]:
    """Values of a transformers model by how they are kept, its adapter aside; a tied weight counts once."""
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name or ".modules_to_save." in name:
            continue
        kind, count = _BITS.get(parameter.dtype, str(parameter.dtype).removeprefix("torch.")), parameter.numel()
        if state := getattr(parameter, "quant_state", None):
            kind, count = str(state.quant_type), torch.Size(state.shape).numel()
        found[kind] = found.get(kind, 0) + count
    return found
