"""LoRA on a native decoder, under PEFT's names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.model.families import describe, peft_targets, why_not_native
from tunesmith.model.lora import LoraSettings, initialise, resolve_targets
from tunesmith.model.native.decoder import Decoder
from tunesmith.model.native.linear import Adapter, Adapters
from tunesmith.model.peft_config import NATIVE, SETTINGS, changes_base

if TYPE_CHECKING:
    from peft import LoraConfig

_PREFIX = "base_model.model."
#: Up to this many linear modules PEFT writes each one's full name for `all-linear`, as of 0.21.
_FULL_NAMES = 20


def attach(model: Decoder, settings: LoraSettings, architecture: str, seed: int) -> LoraSettings:
    """Put a fresh adapter on the base; it begins as it would on a transformers model.

    Returns the settings with the names of the modules that the targets came to. Raises RecipeError.
    """
    names = [part.name for linear in model.linears() for part in linear.parts]
    if settings.target_modules == "auto":
        targets: str | list[str] = list(peft_targets(architecture) or ()) or "all-linear"
    else:
        targets = resolve_targets(settings.target_modules, architecture, names)
    if targets == "all-linear":  # PEFT, too, writes down what it came to
        targets = sorted(names if len(names) < _FULL_NAMES else {name.rpartition(".")[2] for name in names})
    settings = dataclasses.replace(settings, target_modules=targets)
    attach_as(model, settings)
    initialise(named_parameters(model), seed)
    return settings


def settings_of(config: LoraConfig) -> LoraSettings:
    """The settings of an adapter that `why_not` has nothing against."""
    return LoraSettings(config.r, config.lora_alpha, config.lora_dropout, sorted(config.target_modules or ()))


def attach_as(model: Decoder, settings: LoraSettings) -> None:
    """Put adapters of zeros on the modules that are named."""
    device, targets = model.embedding.device, settings.target_modules
    for linear in model.linears():
        chosen = []
        for part in linear.parts:
            if any(part.name == target or part.name.endswith("." + target) for target in targets):
                chosen.append(Adapter(part, linear.weight.inputs, settings.r, device))
        if chosen:
            linear.lora = Adapters(linear.weight, chosen, settings.alpha / settings.r, settings.dropout)


def adapters(model: Decoder) -> Iterator[Adapter]:
    """Every adapter, in the order of the layers."""
    return (adapter for linear in model.linears() if linear.lora for adapter in linear.lora.each)


def named_parameters(model: Decoder) -> dict[str, torch.nn.Parameter]:
    """What learns, by PEFT's names, sorted."""
    parameters = {}
    for adapter in adapters(model):
        parameters[f"{_PREFIX}{adapter.part.name}.lora_A.default.weight"] = adapter.A
        parameters[f"{_PREFIX}{adapter.part.name}.lora_B.default.weight"] = adapter.B
    return dict(sorted(parameters.items()))


def state(model: Decoder) -> dict[str, torch.Tensor]:
    """The same by the names in PEFT's file, which leave the adapter's name out."""
    return {name.replace(".default.", "."): parameter.data
            for name, parameter in named_parameters(model).items()}


@torch.no_grad()
def refresh(model: Decoder) -> None:
    """Copy A and B, learnt in fp32, to where they are multiplied with; all small copies together."""
    slices = [(lora, *each_slice) for lora in (linear.lora for linear in model.linears()) if lora
              for each_slice in lora.slices()]
    if not slices:
        return
    # alpha / r, the same in all
    scaled = torch._foreach_mul([each.B for _, each, *_ in slices], slices[0][0].scale)
    torch._foreach_copy_([lora.a_RI[ranks] for lora, _, ranks, _ in slices],
                         [each.A for _, each, *_ in slices])
    torch._foreach_copy_([lora.b_OR[outputs, ranks] for lora, _, ranks, outputs in slices], scaled)


def why_not(config: LoraConfig, base: Mapping[str, Any]) -> str | None:
    """Why this adapter on this base (its config.json) does not run on the native engine; None when it does.

    What is not known is not taken.
    """
    from peft import LoraConfig

    if reason := why_not_native(base):
        return reason
    plain = LoraConfig()
    for each in dataclasses.fields(config):
        setting, value = SETTINGS.get(each.name), getattr(config, each.name)
        if (setting is None or NATIVE not in setting.followed_by) and value != getattr(plain, each.name):
            return f"the adapter sets {each.name}"
    if changes_base(config.init_lora_weights):
        return f"the adapter's init_lora_weights, {config.init_lora_weights!r}, changes the base"
    if isinstance(config.target_modules, str):
        return "the adapter names its modules by a pattern"
    architecture = describe(base)
    names = architecture.module_names() if architecture else []
    # As PEFT does: a target is a module's whole name, or the end of it from a dot on.
    endings = {name.split(".", parts)[-1] for name in names for parts in range(name.count(".") + 1)}
    unknown = [name for name in config.target_modules or [] if name not in endings]
    return f"the adapter sits on {unknown[0]}" if unknown else None
