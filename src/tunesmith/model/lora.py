"""What a LoRA adapter is, whichever engine holds it: its modules, how it begins, PEFT's two files.

peft takes seconds to import, so it is only where it is needed.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from tunesmith.errors import IntegrityError, RecipeError
from tunesmith.model.libraries import import_peft
from tunesmith.model.peft_config import PEFT_DEFAULTS, understood
from tunesmith.rundir.ordinary import read_json_object, require_ordinary

if TYPE_CHECKING:
    from peft import LoraConfig

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class LoraSettings:
    """The recipe's lora section: rank, alpha, dropout, and what it sits on."""

    r: int
    alpha: float
    dropout: float
    target_modules: str | list[str]


def resolve_targets(target_modules: str | list[str], architecture: str,
                    linear_names: list[str]) -> str | list[str]:
    """The module names that the adapter goes on.

    linear_names: the full names of the base's linear modules. `auto` is the choice of PEFT's table where that
    names the family and the base has such modules, else all-linear. Raises RecipeError for a name that
    matches no module.
    """
    last_names = sorted({name.rpartition(".")[2] for name in linear_names})
    if target_modules == "auto":
        import_peft()
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

        known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(architecture)
        if isinstance(known, str):
            return known
        names = [target for target in known or []
                 if any(name == target or name.endswith("." + target) for name in linear_names)]
        return names or "all-linear"
    if target_modules == "all-linear":
        return target_modules
    wanted = [target_modules] if isinstance(target_modules, str) else target_modules
    for target in wanted:
        if not any(name == target or name.endswith("." + target) for name in linear_names):
            raise RecipeError(f"no linear module of this base is called {target!r}",
                              f"This base has: {', '.join(last_names)}.", setting="lora.target_modules")
    return wanted


def build_config(settings: LoraSettings, targets: str | list[str]) -> LoraConfig:
    """PEFT's own description of the adapter that the recipe asks for."""
    config: LoraConfig = import_peft().LoraConfig(bias="none", task_type="CAUSAL_LM", target_modules=targets,
                                                  **_recipe_settings(settings))
    return config


def peft_config_dict(settings: LoraSettings) -> dict[str, Any]:
    """The same as `build_config(...).to_dict()`, without peft: its import takes 7 s of a processor on some
    machines, and the steps of a run wait for it even in a thread of its own. A test holds the two together.
    """
    return PEFT_DEFAULTS | _recipe_settings(settings) | {
        "task_type": "CAUSAL_LM", "target_modules": sorted(set(settings.target_modules))}


def _recipe_settings(settings: LoraSettings) -> dict[str, Any]:
    alpha = int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha
    return {"r": settings.r, "lora_alpha": alpha, "lora_dropout": settings.dropout}


def initialise(parameters: Mapping[str, torch.nn.Parameter], seed: int) -> None:
    """PEFT's own start (A: Kaiming-uniform, a = sqrt(5), B: zero), drawn on the CPU by (seed, name order).

    So the same seed gives the same adapter on every device, quantisation and engine. parameters: by PEFT's
    names.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(parameters.items()):
        if ".lora_A." in name:
            # He et al. 2015, eq. 14, gain for a = sqrt(5)
            bound = math.sqrt(6 / ((1 + 5) * parameter.shape[1]))
            fresh = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.data.copy_(fresh)
        else:
            parameter.data.zero_()


def adapter_files(config: Mapping[str, Any], state: Mapping[str, torch.Tensor], base_name: str,
                  revision: str | None) -> dict[str, bytes]:
    """PEFT's two files, always the same bytes for one adapter. config: as PEFT's `to_dict` gives it."""
    settings = {**config, "inference_mode": True, "base_model_name_or_path": base_name, "revision": revision}
    serialisable = {key: sorted(value) if isinstance(value, set)
                    else value.value if isinstance(value, enum.Enum) else value
                    for key, value in settings.items()}
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous()
               for name, tensor in sorted(state.items())}
    return {CONFIG_NAME: (json.dumps(serialisable, indent=2, sort_keys=True) + "\n").encode(),
            WEIGHTS_NAME: safetensors.torch.save(tensors, metadata={"format": "pt"})}


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """An adapter folder's config, checked to be a LoRA for a causal model beside safetensors weights.

    Raises IntegrityError naming what is missing, damaged, of another kind, or not understood (see
    `peft_config`).
    """
    path = folder / CONFIG_NAME
    try:
        config = read_json_object(path, infinite=True)  # a number that is none is named with its setting
    except FileNotFoundError:
        raise IntegrityError(f"{folder}: not an adapter: it has no {CONFIG_NAME}",
                             "Give the folder of a PEFT adapter, such as runs/NAME/adapter.") from None
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read: {error.strerror}") from None
    if config.get("peft_type") != "LORA":
        raise IntegrityError(
            f"{path}: an adapter of the kind {config.get('peft_type')}; only LoRA is supported")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise IntegrityError(f"{path}: made for {config['task_type']}, not for CAUSAL_LM")
    understood(config, path)
    require_ordinary(folder / WEIGHTS_NAME)
    if not (folder / WEIGHTS_NAME).exists():
        if (folder / "adapter_model.bin").exists():
            raise IntegrityError(f"{folder}: its weights are a pickle (adapter_model.bin), which is refused: "
                                 "a pickle can run any code", "Save the adapter again with a current peft.")
        raise IntegrityError(f"{folder}: has no {WEIGHTS_NAME}")
    return config


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """A saved adapter: (config, tensors). Raises IntegrityError when it is none, or cannot be trusted."""
    config = _as_lora_config(check_adapter(folder), folder)
    try:
        return config, safetensors.torch.load_file(folder / WEIGHTS_NAME)
    except (SafetensorError, ValueError, OSError) as error:
        raise IntegrityError(f"{folder}: not readable as a LoRA adapter: {error}") from None


def lora_config_of(folder: Path) -> LoraConfig:
    """A saved adapter's config as PEFT's object, its tensors left where they are. Raises IntegrityError."""
    return _as_lora_config(read_adapter_config(folder), folder)


def _as_lora_config(config: Mapping[str, Any], folder: Path) -> LoraConfig:
    settings = understood(config, folder / CONFIG_NAME)
    settings.pop("peft_type")
    try:
        lora_config: LoraConfig = import_peft().LoraConfig(**settings)
    except (TypeError, ValueError) as error:
        raise IntegrityError(f"{folder}: not readable as a LoRA adapter: {error}") from None
    return lora_config


def check_adapter(folder: Path) -> dict[str, Any]:
    """An adapter's config, once all that needs no base is checked: settings, tensor pairs, ranks, values.

    Raises IntegrityError naming the word or the tensor.
    """
    config = read_adapter_config(folder)
    try:
        state = safetensors.torch.load_file(folder / WEIGHTS_NAME)
    except (SafetensorError, ValueError, OSError) as error:
        raise IntegrityError(f"{folder / WEIGHTS_NAME}: not a whole safetensors file: {error}") from None
    if problems := _tensor_problems(config, state):
        raise IntegrityError(f"{folder / WEIGHTS_NAME}: cannot be used:\n  " + listing(problems))
    return config


def _tensor_problems(config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> list[str]:
    problems = [f"{name}: NaN or infinite" for name in sorted(state)
                if not torch.isfinite(state[name].float()).all()]
    a_names = {name for name in state if ".lora_A." in name or ".lora_embedding_A" in name}
    if not a_names:
        problems.append("it has no lora_A, so it would attach to nothing")
    uniform_rank = not (config.get("rank_pattern") or config.get("use_bdlora")
                        or config.get("target_parameters"))
    for name in sorted(a_names):
        b_name = name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
        if b_name not in state:
            problems.append(f"{b_name}: missing, though {name} is there")
        elif state[name].ndim < 2 or state[b_name].ndim < 2:
            problems.append(
                f"{name}: {list(state[name].shape)} and {list(state[b_name].shape)}: no pair of matrices")
        elif state[name].shape[0] != state[b_name].shape[-1]:
            problems.append(f"{name}: rank {state[name].shape[0]}, but {state[b_name].shape[-1]} in {b_name}")
        elif uniform_rank and state[name].shape[0] != config["r"]:
            problems.append(f"{name}: rank {state[name].shape[0]}, but r is {config['r']} in {CONFIG_NAME}")
    return problems


def listing(problems: Sequence[str]) -> str:
    """At most five of them, a line each."""
    return "\n  ".join([*problems[:5], *([f"... and {len(problems) - 5} more"] if len(problems) > 5 else [])])


def mismatches(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """Every tensor that is too many, missing, of another shape or not finite; empty when all fit."""
    problems = [f"{name}: not in this base" for name in sorted(set(state) - set(expected))]
    problems += [f"{name}: missing in the adapter" for name in sorted(set(expected) - set(state))]
    problems += [
        f"{name}: {list(state[name].shape)} in the adapter, {list(expected[name].shape)} in this base"
        for name in sorted(set(state) & set(expected)) if state[name].shape != expected[name].shape]
    problems += [f"{name}: NaN or infinite" for name in sorted(state)
                 if not torch.isfinite(state[name].float()).all()]
    return listing(problems)


def copy_state(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy an adapter's tensors into the model's, by name. Raises IntegrityError listing misfits."""
    if problems := mismatches(state, expected):
        raise IntegrityError(f"{where}: does not fit this base:\n  {problems}",
                             "Is it an adapter for another base?")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(state[name])
