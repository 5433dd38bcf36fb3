"""`tunesmith plan`: what a run will train, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tunesmith.model.base_config import refuse_bidirectional, require_agreement, require_causal
from tunesmith.model.families import FAMILIES
from tunesmith.model.files import locate_config
from tunesmith.model.quantization import WAYS
from tunesmith.recipe import load_recipe
from tunesmith.verbs.decide import count


def plan(recipe: str | os.PathLike[str], *, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Count what the recipe would train, from the base's config.json alone.

    Returns trainable_parameters, all_parameters, trainable_percent, base, architecture, adapter_bytes,
    quantization, quantised_percent (the share of the base's values that it reaches) and notes (what is to be
    said of the adapter's places). Raises RecipeError, NetworkError.
    """
    chosen = load_recipe(os.fspath(recipe), overrides)
    base, config = locate_config(chosen.model.base, chosen.model.revision)
    refuse_bidirectional(config, base)
    require_agreement(config, base, chosen.model.quantization)
    if config.get("model_type") not in FAMILIES:
        require_causal(config, base)
    counts = count(config, chosen.lora)
    trainable, everything = counts.trainable, counts.all
    total = everything - trainable
    return {"base": base, "architecture": config["model_type"], "trainable_parameters": trainable,
            "all_parameters": everything, "trainable_percent": 100 * trainable / everything,
            "adapter_bytes": 4 * trainable, "quantization": chosen.model.quantization,
            "notes": list(counts.notes), "quantised_percent": 100 * counts.linear / total
            if WAYS[chosen.model.quantization].quantised else 0.0}
