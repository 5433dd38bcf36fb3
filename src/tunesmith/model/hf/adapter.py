"""The LoRA adapter through PEFT: which modules it sits on, how it begins, how it is written and read back."""

from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from safetensors import SafetensorError

from tunesmith.errors import IntegrityError, RecipeError

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class LoraSettings:
    """The recipe's lora section: rank, alpha, dropout, and what it sits on."""

    r: int
    alpha: float
    dropout: float
    target_modules: str | list[str]


def resolve_targets(target_modules: str | list[str], architecture: str, linear_names: list[str]) -> str | list[str]:
    """The module names that the adapter goes on.

    linear_names: the full names of the base's linear modules.
    Raises RecipeError for `auto` on a family that PEFT's table lacks, and for a name that matches no module.
    """
    last_names = sorted({name.rpartition(".")[2] for name in linear_names})
    if target_modules == "auto":
        known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(architecture)
        if known is None:
            raise RecipeError(f"lora.target_modules: auto: PEFT's table has no entry for the family {architecture!r}",
                              f"Name them yourself, or take all-linear. This base has: {', '.join(last_names)}.")
        return known if isinstance(known, str) else list(known)
    if target_modules == "all-linear":
        return target_modules
    wanted = [target_modules] if isinstance(target_modules, str) else target_modules
    for target in wanted:
        if not any(name == target or name.endswith("." + target) for name in linear_names):
            raise RecipeError(f"lora.target_modules: no linear module of this base is called {target!r}",
                              f"This base has: {', '.join(last_names)}.")
    return wanted


def attach(model: torch.nn.Module, settings: LoraSettings, architecture: str, seed: int) -> PeftModel:
    """Put a fresh adapter on a frozen base. Its start depends on the seed and the module names alone."""
    import transformers

    linear = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if isinstance(module, linear) and module is not head]
    alpha = int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha
    config = LoraConfig(
        r=settings.r, lora_alpha=alpha, lora_dropout=settings.dropout, bias="none", task_type="CAUSAL_LM",
        target_modules=resolve_targets(settings.target_modules, architecture, names))
    peft_model = get_peft_model(model, config)
    initialise(peft_model, seed)
    return peft_model


def initialise(model: PeftModel, seed: int) -> None:
    """PEFT's own start (A: Kaiming-uniform with a = sqrt(5), B: zero), but drawn on the CPU by (seed, order of names).

    So the same seed gives the same adapter on every device, quantisation and engine.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(trainable(model).items()):
        if ".lora_A." in name:
            bound = math.sqrt(6 / ((1 + 5) * parameter.shape[1]))  # He et al. 2015, eq. 14, gain for a = sqrt(5)
            fresh = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.data.copy_(fresh)
        else:
            parameter.data.zero_()


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn, by full name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_files(model: PeftModel, base_name: str, revision: str | None) -> dict[str, bytes]:
    """PEFT's two files as bytes, byte for byte the same for the same adapter."""
    config: dict[str, Any] = model.peft_config["default"].to_dict()
    config |= {"inference_mode": True, "base_model_name_or_path": base_name, "revision": revision}
    plain = {key: sorted(value) if isinstance(value, set) else value.value if isinstance(value, enum.Enum) else value
             for key, value in config.items()}
    state = {name: tensor.detach().to("cpu", copy=True).contiguous()
             for name, tensor in sorted(get_peft_model_state_dict(model).items())}
    return {CONFIG_NAME: (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode(),
            WEIGHTS_NAME: safetensors.torch.save(state, metadata={"format": "pt"})}


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """An adapter folder's config, checked to be a LoRA for a causal model, with safetensors weights beside it.

    Raises IntegrityError naming what is missing, damaged or of another kind.
    """
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IntegrityError(f"{folder}: not an adapter: it has no {CONFIG_NAME}",
                             "Give the folder of a PEFT adapter, such as runs/NAME/adapter.") from None
    except (ValueError, OSError):
        raise IntegrityError(f"{path}: damaged: not JSON") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise IntegrityError(f"{path}: an adapter of the kind {kind}; only LoRA is supported")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise IntegrityError(f"{path}: made for {config['task_type']}, not for CAUSAL_LM")
    if not (folder / WEIGHTS_NAME).exists():
        if (folder / "adapter_model.bin").exists():
            raise IntegrityError(f"{folder}: its weights are a pickle (adapter_model.bin), which is refused: "
                                 "a pickle can run any code", "Save the adapter again with a current peft.")
        raise IntegrityError(f"{folder}: has no {WEIGHTS_NAME}")
    return config


def load_adapter(model: torch.nn.Module, folder: Path) -> PeftModel:
    """Put a saved adapter on a frozen base; every one of its tensors must find its place.

    Raises IntegrityError listing what does not fit.
    """
    read_adapter_config(folder)
    try:
        config = LoraConfig.from_pretrained(str(folder))
        state = safetensors.torch.load_file(folder / WEIGHTS_NAME)
    except (SafetensorError, TypeError, ValueError, OSError) as error:
        raise IntegrityError(f"{folder}: not readable as a LoRA adapter: {error}") from None
    config.inference_mode = False
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        raise IntegrityError(f"{folder}: does not fit this base: {str(error).splitlines()[0]}",
                             "Is it an adapter for another base?") from None
    problems = _mismatches(state, get_peft_model_state_dict(peft_model))
    if problems:
        raise IntegrityError(f"{folder}: does not fit this base:\n  {problems}", "Is it an adapter for another base?")
    set_state(peft_model, state)
    return peft_model


def _mismatches(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str:
    """Every tensor that is too many, missing, of another shape or not finite; empty when all fit."""
    problems = [f"{name}: not in this base" for name in sorted(set(state) - set(expected))]
    problems += [f"{name}: missing in the adapter" for name in sorted(set(expected) - set(state))]
    problems += [f"{name}: {list(state[name].shape)} in the adapter, {list(expected[name].shape)} in this base"
                 for name in sorted(set(state) & set(expected)) if state[name].shape != expected[name].shape]
    problems += [f"{name}: NaN or infinite" for name in sorted(state) if not torch.isfinite(state[name].float()).all()]
    return "\n  ".join(problems[:5] + ([f"... and {len(problems) - 5} more"] if len(problems) > 5 else []))


def set_state(model: PeftModel, state: dict[str, torch.Tensor]) -> None:
    """Copy adapter tensors, by the names in the adapter's file, into the model. Raises IntegrityError."""
    expected = get_peft_model_state_dict(model)
    if problems := _mismatches(state, expected):
        raise IntegrityError(f"the adapter's tensors do not fit this base:\n  {problems}")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(state[name])
