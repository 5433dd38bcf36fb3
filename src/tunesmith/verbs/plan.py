"""`tunesmith plan`: what a run will train, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tunesmith.model.base_config import refuse_two_ways, require_agreement, require_causal
from tunesmith.model.files import locate_config
from tunesmith.planning import can_count, count_parameters
from tunesmith.recipe import load_recipe


def plan(recipe: str | os.PathLike[str], *, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Count what the recipe would train, from the base's config.json alone.

    Returns trainable_parameters, all_parameters, trainable_percent, base, architecture, adapter_bytes, quantization,
    quantised_percent (the share of the base's values that it reaches) and notes (what is to be said of the adapter's places).
    Raises RecipeError, NetworkError.
    """
    chosen = load_recipe(os.fspath(recipe), overrides)
    base, config = locate_config(chosen.model.base, chosen.model.revision)
    refuse_two_ways(config, base)
    require_agreement(config, base, chosen.model.quantization)
    if can_count(config, chosen.lora.target_modules):
        counts = count_parameters(config, r=chosen.lora.r, target_modules=chosen.lora.target_modules)
        notes: tuple[str, ...] = ()
        trainable, everything, quantisable = counts.trainable, counts.all, counts.linear
    else:
        from tunesmith.model.hf.meta import count_on_meta
        from tunesmith.model.lora import LoraSettings

        require_causal(config, base)
        found = count_on_meta(config, LoraSettings(
            chosen.lora.r, chosen.lora.alpha, chosen.lora.dropout, chosen.lora.target_modules))
        trainable, everything, quantisable, notes = found.trainable, found.all, found.quantisable, found.notes
    total = everything - trainable
    return {"base": base, "architecture": config["model_type"], "trainable_parameters": trainable,
            "all_parameters": everything, "trainable_percent": 100 * trainable / everything,
            "adapter_bytes": 4 * trainable, "quantization": chosen.model.quantization, "notes": list(notes),
            "quantised_percent": 0.0 if chosen.model.quantization == "none" else 100 * quantisable / total}
