"""LoRA on a native decoder, under PEFT's names."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import LoraConfig

from tunesmith.model.lora import LoraSettings, build_config, initialise, resolve_targets
from tunesmith.model.native.decoder import Decoder
from tunesmith.model.native.linear import Adapter, Adapters

_PREFIX = "base_model.model."


def attach(model: Decoder, settings: LoraSettings, architecture: str, seed: int) -> LoraConfig:
    """Put a fresh adapter on the base; it begins as it would on a transformers model."""
    names = [part.name for linear in model.linears() for part in linear.parts]
    targets = resolve_targets(settings.target_modules, architecture, names)
    if targets == "all-linear":  # PEFT, too, writes down what it came to
        targets = sorted({name.rpartition(".")[2] for name in names})
    config = build_config(settings, targets)
    attach_as(model, config)
    initialise(named_parameters(model), seed)
    return config


def attach_as(model: Decoder, config: LoraConfig) -> None:
    """Put adapters of zeros where PEFT's config says."""
    device = model.embedding.device
    targets = [config.target_modules] if isinstance(config.target_modules, str) else list(config.target_modules)
    salt = 0
    for linear in model.linears():
        chosen = []
        for part in linear.parts:
            salt += 1
            if any(part.name == target or part.name.endswith("." + target) for target in targets):
                chosen.append(Adapter(part, linear.weight.inputs, config.r, salt, device))
        if chosen:
            linear.lora = Adapters(linear.weight, chosen, config.lora_alpha / config.r, config.lora_dropout)


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
