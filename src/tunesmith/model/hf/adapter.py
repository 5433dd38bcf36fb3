"""The LoRA adapter on a transformers model, through PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict

from tunesmith.errors import IntegrityError
from tunesmith.model import lora
from tunesmith.model.lora import LoraSettings, build_config, copy_state, read_adapter, resolve_targets


def attach(model: torch.nn.Module, settings: LoraSettings, architecture: str, seed: int) -> PeftModel:
    """Put a fresh adapter on a frozen base. Its start depends on the seed and the module names alone."""
    import transformers

    linear = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if isinstance(module, linear) and module is not head]
    peft_model = get_peft_model(model, build_config(settings, resolve_targets(settings.target_modules, architecture, names)))
    lora.initialise(trainable(peft_model), seed)
    return peft_model


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn, by full name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_files(model: PeftModel, base_name: str, revision: str | None) -> dict[str, bytes]:
    """PEFT's two files as bytes."""
    return lora.adapter_files(model.peft_config["default"].to_dict(), get_peft_model_state_dict(model), base_name, revision)


def load_adapter(model: torch.nn.Module, folder: Path) -> PeftModel:
    """Put a saved adapter on a frozen base; every one of its tensors must find its place.

    Raises IntegrityError listing what does not fit.
    """
    config, state = read_adapter(folder)
    config.inference_mode = False
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        raise IntegrityError(f"{folder}: does not fit this base: {str(error).splitlines()[0]}",
                             "Is it an adapter for another base?") from None
    copy_state(state, get_peft_model_state_dict(peft_model), str(folder))
    return peft_model


def set_state(model: PeftModel, state: Mapping[str, torch.Tensor]) -> None:
    """Copy adapter tensors, by the names in the adapter's file, into the model. Raises IntegrityError."""
    copy_state(state, get_peft_model_state_dict(model), "the adapter's tensors")
