"""Count the parameters of any family by building it without memory (torch's meta device)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.model.base_config import config_object
from tunesmith.model.hf.adapter import attach
from tunesmith.model.libraries import quiet_libraries
from tunesmith.model.lora import LoraSettings


@dataclass(frozen=True)
class MetaCounts:
    """trainable: the adapter's parameters; all: those and the base's; quantisable: values of the base that
    quantisation reaches; notes: what is to be said of where the adapter is.
    """

    trainable: int
    all: int
    quantisable: int
    notes: tuple[str, ...]


def count_on_meta(config: dict[str, Any], settings: LoraSettings) -> MetaCounts:
    """Count a base and its adapter. Raises RecipeError for an unknown architecture or target."""
    quiet_libraries()
    try:
        known = config_object({key: value for key, value in config.items() if key != "quantization_config"})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(known, trust_remote_code=False)
    except TunesmithError:  # a signal of the user's
        raise
    except Exception as error:  # transformers raises whatever the config lacks
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"no causal language model can be built from its config "
                          f"({config.get('model_type')}): {reason}", setting="model.base") from None
    head = model.get_output_embeddings()
    quantisable = sum(module.weight.numel() for module in model.modules()
                      if type(module) is torch.nn.Linear and module is not head)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    peft_model, notes = attach(model, settings, str(config["model_type"]), seed=0)
    trainable, everything = peft_model.get_nb_trainable_parameters()
    return MetaCounts(trainable, everything, quantisable, tuple(notes))
