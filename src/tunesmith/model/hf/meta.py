"""Count the parameters of any family by building it without memory (torch's meta device)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.errors import RecipeError
from tunesmith.model.hf.adapter import attach
from tunesmith.model.libraries import quiet_libraries
from tunesmith.model.lora import LoraSettings


def count_on_meta(config: dict[str, Any], settings: LoraSettings) -> tuple[int, int]:
    """(trainable, all) parameters of a base and its adapter. Raises RecipeError for an unknown architecture or target."""
    quiet_libraries()
    try:
        known = AutoConfig.for_model(**config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(known, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever the config lacks
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"model.base: no causal language model can be built from its config "
                          f"({config.get('model_type')}): {reason}") from None
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return attach(model, settings, str(config["model_type"]), seed=0).get_nb_trainable_parameters()
