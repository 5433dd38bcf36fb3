"""The LoRA adapter on a transformers model, through PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict

from tunesmith.errors import IntegrityError
from tunesmith.model import lora
from tunesmith.model.lora import CONFIG_NAME, LoraSettings, build_config, copy_state, read_adapter, resolve_targets
from tunesmith.model.peft_config import require_bounded


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
    path = folder / CONFIG_NAME
    require_bounded(config.to_dict(), [name for name, _ in model.named_modules()], path)
    _require_tokens(config.trainable_token_indices, len(model.get_input_embeddings().weight), path)
    try:
        peft_model = get_peft_model(model, config)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise IntegrityError(f"{folder}: does not fit this base: {reason}", "Is it an adapter for another base?") from None
    copy_state(state, get_peft_model_state_dict(peft_model), str(folder))
    return peft_model


def _require_tokens(indices: list[int] | dict[str, list[int]] | None, vocabulary: int, path: Path) -> None:
    """Raise IntegrityError for tokens that the base does not have."""
    every = [each for part in indices.values() for each in part] if isinstance(indices, dict) else indices or []
    if every and max(every) >= vocabulary:
        raise IntegrityError(f"{path}: trainable_token_indices has {max(every)}; this base has {vocabulary} tokens",
                             "Is it an adapter for another base?")


def set_state(model: PeftModel, state: Mapping[str, torch.Tensor]) -> None:
    """Copy adapter tensors, by the names in the adapter's file, into the model. Raises IntegrityError."""
    copy_state(state, get_peft_model_state_dict(model), "the adapter's tensors")
