"""The LoRA adapter on a transformers model, through PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import IntegrityError, RecipeError
from tunesmith.model import lora
from tunesmith.model.lora import (
    CONFIG_NAME,
    LoraSettings,
    build_config,
    copy_state,
    read_adapter,
    resolve_targets,
)
from tunesmith.model.peft_config import require_bounded


def attach(model: torch.nn.Module, settings: LoraSettings, architecture: str,
           seed: int) -> tuple[PeftModel, list[str]]:
    """Put a fresh adapter on a frozen base; (the model, what is to be said of where the adapter is).

    Its start depends on the seed and the module names alone. Raises RecipeError for targets that cannot carry
    LoRA, a rank that is larger than any of the modules, and where nothing is left to carry the adapter.
    """
    of_transformers: Any = model
    head = of_transformers.get_output_embeddings()
    linears = {name: module for name, module in model.named_modules()
               if isinstance(module, torch.nn.Linear | Conv1D) and module is not head}
    unsupported = _unsupported_modules(linears, architecture, settings.dropout)
    names, notes = [name for name in linears if name not in unsupported], []
    targets = resolve_targets(settings.target_modules, architecture, list(linears))
    if settings.target_modules == "auto" and targets == "all-linear":
        notes.append(
            f"lora.target_modules: PEFT's table does not name {architecture}, so auto is all linear modules.")
    fused = _fused_names(architecture) if settings.dropout else set()
    if targets == "all-linear" and (unsupported or fused or not names):
        if not names:
            raise RecipeError("no linear module of this base can carry LoRA: "
                              + "; ".join(sorted(set(unsupported.values()))), "Take another base.",
                              setting="lora.target_modules")
        targets = _short_names(names, list(linears))
        notes += _exclusion_notes(unsupported)
        if fused:  # PEFT's own all-linear would add them
            notes.append(f"lora.target_modules: without the experts: {_FUSED}.")
    elif isinstance(targets, list):
        _refuse_targets(targets, unsupported)
    _require_rank(settings.r, linears, targets)
    try:
        peft_model = get_peft_model(model, build_config(settings, targets))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise RecipeError(f"{settings.target_modules}: PEFT puts no LoRA there on {architecture}: "
                          f"{(str(error).strip().splitlines() or [type(error).__name__])[0]}",
                          "Name other modules. This base has: "
                          f"{', '.join(sorted({_last_name(name) for name in names}))}.",
                          setting="lora.target_modules") from None
    lora.initialise(trainable(peft_model), seed)
    return peft_model, notes


def _last_name(name: str) -> str:
    return name.rpartition(".")[2]


#: Families whose state-space layers compute with the weight itself, past the module and so past LoRA; as PEFT
#: has them.
_MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}


def _unsupported_modules(linears: Mapping[str, torch.nn.Module], architecture: str,
                         dropout: float) -> dict[str, str]:
    """The linear modules on which LoRA cannot sit, each with the reason."""
    reasons = {}
    fused = _fused_names(architecture) if dropout else set()
    for name, module in linears.items():
        if not _is_plain(module):
            reasons[name] = f"{type(module).__name__} is more than a product (a router, say)"
        elif architecture in _MAMBA and _last_name(name) in ("out_proj", "conv1d"):
            reasons[name] = "the state-space layer computes past the module"
        elif _last_name(name) in _WEIGHT_USED_DIRECTLY.get(architecture, ()):
            reasons[name] = "the layer computes with its weight, past the module"
        elif architecture in _NO_GRADIENT and _NO_GRADIENT[architecture][0] in name.split("."):
            reasons[name] = _NO_GRADIENT[architecture][1]
        elif _last_name(name) in fused:
            reasons[name] = _FUSED
    return reasons


_FUSED = "PEFT puts LoRA of this name on the fused experts, which take no dropout (lora.dropout: 0 allows it)"
#: Modules of other families whose weight is used without calling them, so that LoRA on them would learn
#: nothing.
_WEIGHT_USED_DIRECTLY = dict.fromkeys(("jamba", "mamba", "falcon_mamba"), frozenset({"dt_proj"})) | {
    "longcat_flash": frozenset({"classifier"})}
_SELECTS_TOKENS = "it only chooses which tokens attention looks at, and a choice has no gradient"
#: Modules that no text gives a gradient, by a part of their names, with the reason.
_NO_GRADIENT = {"deepseek_v32": ("indexer", _SELECTS_TOKENS), "glm_moe_dsa": ("indexer", _SELECTS_TOKENS),
                "fuyu": ("vision_embed_tokens", "it reads images alone")}


def _is_plain(module: torch.nn.Module) -> bool:
    """A product and nothing else: torch's own layer, GPT-2's, one that bitsandbytes keeps in few bits, or one
    of a family's own that gives what a product gives, which is tried.
    """
    kind = type(module)
    if kind in (torch.nn.Linear, Conv1D) or any(
            each.__module__.startswith("bitsandbytes") for each in kind.__mro__):
        return True
    inputs, outputs = _widths(module)
    try:
        with torch.no_grad():
            weight: Any = module.weight
            product = module(torch.zeros(1, inputs, device=weight.device, dtype=weight.dtype))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False
    return isinstance(product, torch.Tensor) and product.shape == (1, outputs)


def _fused_names(architecture: str) -> set[str]:
    """Names of modules that PEFT takes for experts, which transformers 5 keeps as one parameter."""
    try:
        from peft.utils import transformers_weight_conversion as conversion
    except ImportError:  # a peft or a transformers without it
        return set()
    patterns: dict[str, str] = getattr(conversion, "_MODEL_TO_CONVERSION_PATTERN", {})
    experts: dict[str, dict[str, str]] = getattr(conversion, "_MOE_TARGET_MODULE_MAPPING", {})
    return set(experts.get(patterns.get(architecture, ""), {}))


def _short_names(wanted: list[str], every: list[str]) -> list[str]:
    """The last parts of the names where these mean no other module, else the full names."""
    last_names = {_last_name(name) for name in wanted}
    meant = {name for name in every if _last_name(name) in last_names}
    return sorted(last_names) if meant == set(wanted) else sorted(wanted)


def _exclusion_notes(unsupported: Mapping[str, str]) -> list[str]:
    """A line for each reason, with the names."""
    reasons: dict[str, set[str]] = {}
    for name, reason in unsupported.items():
        reasons.setdefault(reason, set()).add(_last_name(name))
    return [f"lora.target_modules: without {', '.join(sorted(names))}: {reason}."
            for reason, names in reasons.items()]


def _refuse_targets(targets: list[str], unsupported: Mapping[str, str]) -> None:
    for target in targets:
        for name, reason in unsupported.items():
            if name == target or name.endswith("." + target):
                raise RecipeError(f"{target}: LoRA cannot sit on {name}: {reason}",
                                  "Leave it out, or take all-linear, which does.",
                                  setting="lora.target_modules")


def _require_rank(r: int, linears: Mapping[str, torch.nn.Module], targets: str | list[str]) -> None:
    """Raise RecipeError for a rank beyond every width: such an update is no smaller than the weight."""
    chosen = [module for name, module in linears.items() if isinstance(targets, str)
              or any(name == target or name.endswith("." + target) for target in targets)]
    widest = max((max(_widths(module)) for module in chosen), default=0)
    if chosen and r > widest:
        raise RecipeError(f"lora.r is {r:,}: no module of this base is wider than {widest:,}",
                          "Usual ranks are 4 to 256.")


def _widths(module: torch.nn.Module) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.nf)
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn, by full name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_files(model: PeftModel, base_name: str, revision: str | None) -> dict[str, bytes]:
    """PEFT's two files as bytes."""
    return lora.adapter_files(model.peft_config["default"].to_dict(), get_peft_model_state_dict(model),
                              base_name, revision)


def load_adapter(model: torch.nn.Module, folder: Path) -> PeftModel:
    """Put a saved adapter on a frozen base; every one of its tensors must find its place.

    Raises IntegrityError listing what does not fit.
    """
    config, state = read_adapter(folder)
    config.inference_mode = False
    path = folder / CONFIG_NAME
    require_bounded(config.to_dict(), [name for name, _ in model.named_modules()], path)
    of_transformers: Any = model
    _require_tokens(config.trainable_token_indices, len(of_transformers.get_input_embeddings().weight), path)
    try:
        peft_model = get_peft_model(model, config)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError,
            NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise IntegrityError(f"{folder}: does not fit this base: {reason}",
                             "Is it an adapter for another base?") from None
    copy_state(state, get_peft_model_state_dict(peft_model), str(folder))
    return peft_model


def _require_tokens(indices: list[int] | dict[str, list[int]] | None, vocabulary: int, path: Path) -> None:
    """Raise IntegrityError for tokens that the base does not have."""
    every = ([each for part in indices.values() for each in part] if isinstance(indices, dict)
             else indices or [])
    if every and max(every) >= vocabulary:
        raise IntegrityError(
            f"{path}: trainable_token_indices has {max(every)}; this base has {vocabulary} tokens",
            "Is it an adapter for another base?")


def set_state(model: PeftModel, state: Mapping[str, torch.Tensor]) -> None:
    """Copy adapter tensors, by the names in the adapter's file, into the model. Raises IntegrityError."""
    copy_state(state, get_peft_model_state_dict(model), "the adapter's tensors")
