"""LoRA on a native decoder, under PEFT's names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from tunesmith.model.lora import LoraSettings, initialise, resolve_targets
from tunesmith.model.native.decoder import Decoder
from tunesmith.model.native.linear import Adapter, Adapters
from tunesmith.model.native.support import AUTO_TARGETS

if TYPE_CHECKING:
    from peft import LoraConfig

_PREFIX = "base_model.model."


def attach(model: Decoder, settings: LoraSettings, architecture: str, seed: int) -> LoraSettings:
    """Put a fresh adapter on the base; it begins as it would on a transformers model.

    Returns the settings with the names of the modules that the targets came to. Raises RecipeError.
    """
    names = [part.name for linear in model.linears() for part in linear.parts]
    if settings.target_modules == "auto":
        targets: str | list[str] = AUTO_TARGETS[architecture]
    else:
        targets = resolve_targets(settings.target_modules, architecture, names)
    if targets == "all-linear":  # PEFT, too, writes down what it came to
        targets = sorted({name.rpartition(".")[2] for name in names})
    settings = dataclasses.replace(settings, target_modules=targets)
    attach_as(model, settings)
    initialise(named_parameters(model), seed)
    return settings


def settings_of(config: LoraConfig) -> LoraSettings:
    """The settings of an adapter that `why_not` has nothing against."""
    return LoraSettings(config.r, config.lora_alpha, config.lora_dropout, sorted(config.target_modules))


def attach_as(model: Decoder, settings: LoraSettings) -> None:
    """Put adapters of zeros on the modules that are named."""
    device, targets, salt = model.embedding.device, settings.target_modules, 0
    for linear in model.linears():
        chosen = []
        for part in linear.parts:
            salt += 1
            if any(part.name == target or part.name.endswith("." + target) for target in targets):
                chosen.append(Adapter(part, linear.weight.inputs, settings.r, salt, device))
        if chosen:
            linear.lora = Adapters(linear.weight, chosen, settings.alpha / settings.r, settings.dropout)


def adapters(model: Decoder) -> Iterator[Adapter]:
    """Every adapter, in the order of the layers."""
    return (adapter for linear in model.linears() if linear.lora for adapter in linear.lora.adapters)


def named_parameters(model: Decoder) -> dict[str, torch.nn.Parameter]:
    """What learns, by PEFT's names, sorted."""
    found = {}
    for adapter in adapters(model):
        found[f"{_PREFIX}{adapter.part.name}.lora_A.default.weight"] = adapter.A
        found[f"{_PREFIX}{adapter.part.name}.lora_B.default.weight"] = adapter.B
    return dict(sorted(found.items()))


def state(model: Decoder) -> dict[str, torch.Tensor]:
    """The same by the names in PEFT's file, which leave the adapter's name out."""
    return {name.replace(".default.", "."): parameter.data for name, parameter in named_parameters(model).items()}


def refresh(model: Decoder) -> None:
    """Copy what was learnt in fp32 to where it is multiplied with."""
    for linear in model.linears():
        if linear.lora:
            linear.lora.refresh()


def why_not(config: LoraConfig) -> str | None:
    """Why this adapter does not run on the native engine; None when it does."""
    from peft import LoraConfig

    plain = LoraConfig()
    for name in ("use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform",
                 "layer_replication", "trainable_token_indices", "target_parameters", "exclude_modules", "fan_in_fan_out"):
        value = getattr(config, name, None)
        if value and value != getattr(plain, name, None):
            return f"the adapter sets {name}"
    if config.bias != "none" or getattr(config, "lora_bias", False):
        return "the adapter has biases"
    if isinstance(config.target_modules, str):
        return "the adapter names its modules by a pattern"
    return None
