"""What a LoRA adapter comes to for each parameter of its base; refused where no merge can be right.

Shapes: O outputs, I inputs of a linear layer, V entries of the vocabulary, C channels, R ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import IntegrityError, RecipeError, TunesmithError
from tunesmith.model.base_config import config_object
from tunesmith.model.files import BaseFiles
from tunesmith.model.libraries import quiet_libraries
from tunesmith.model.lora import CONFIG_NAME, listing, read_adapter, read_adapter_config
from tunesmith.model.peft_config import MERGE, SETTINGS, changes_base, require_bounded, unsupported_setting
from tunesmith.model.quantization import WAYS

_PREFIX = "base_model.model."
_HINT = "Use it unmerged, with PEFT; or let PEFT's own merge_and_unload decide."


@dataclass(frozen=True)
class Change:
    """What becomes of one parameter W: W + scale * left right, or another tensor in its place.

    left, right: fp32, together of W's shape as it lies in the file.
    """

    left: torch.Tensor | None = None
    right: torch.Tensor | None = None
    scale: float = 0.0
    replacement: torch.Tensor | None = None


@dataclass(frozen=True)
class Skeleton:
    """A base without its weights, as transformers builds it.

    shapes: of its parameters, by name. kinds: of its modules that can carry LoRA: linear, conv1d (which keeps
    [I, O]), embedding. quantised: the modules that a quantised run keeps in fewer bits. tied: parameter ->
    the one it shares. prefix: the name of the body, with its dot, which some checkpoints leave out.
    """

    shapes: dict[str, tuple[int, ...]]
    kinds: dict[str, str]
    quantised: frozenset[str]
    tied: dict[str, str]
    prefix: str


@dataclass
class Changes:
    """changes: by parameter. own_base: base tensors that the adapter brings along, to be the same."""

    changes: dict[str, Change] = field(default_factory=dict)
    own_base: dict[str, torch.Tensor] = field(default_factory=dict)


def read_skeleton(base: BaseFiles, quantization: str | None) -> Skeleton:
    """Build the base on torch's meta device. quantization: whose modules are to be named; None for none.

    Raises RecipeError for an architecture that transformers does not know, IntegrityError for a base that is
    quantised already.
    """
    if base.config.get("quantization_config"):
        raise IntegrityError(
            f"{base.name}: its files are quantised already, so an adapter cannot be merged into them",
            "Merge into the model that it was quantised from.")
    quiet_libraries()
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config_object(base.config), trust_remote_code=False)
    except TunesmithError:  # a signal of the user's
        raise
    except Exception as error:  # transformers raises whatever the config lacks
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"{base.name}: transformers cannot build it from its config.json: {reason}") from None
    classes = {torch.nn.Linear: "linear", Conv1D: "conv1d", torch.nn.Embedding: "embedding"}
    kinds = {name: kind for name, module in model.named_modules() for of, kind in classes.items()
             if isinstance(module, of)}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    quantised = frozenset[str]() if quantization is None else WAYS[quantization].reaches(model)
    return Skeleton(shapes, kinds, quantised, dict(model.all_tied_weights_keys),
                    f"{model.base_model_prefix}.")


def read_changes(folder: Path, skeleton: Skeleton) -> Changes:
    """What the adapter in `folder` does to each parameter. Raises IntegrityError listing misfits."""
    settings = read_adapter_config(folder)
    _refuse(folder, settings)
    config, state = read_adapter(folder)
    require_bounded(settings, list(skeleton.kinds), folder / CONFIG_NAME)
    changes, problems = Changes(), list[str]()
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    if settings.get("ensure_weight_tying") and skeleton.tied:
        problems.append("ensure_weight_tying on a base whose head is tied: which of the two it learnt is not "
                        "written down")
    for name, tensor in sorted(state.items()):
        module, part = _split(name)
        parameter = f"{module}.{part}" if part else module
        if part.startswith("lora_"):
            pairs.setdefault(module, {})[part] = tensor
        elif part == "base_layer.weight":
            changes.own_base[f"{module}.weight"] = tensor
        elif not _is_saved(parameter, config.modules_to_save or []):
            problems.append(f"{name}: neither LoRA nor modules_to_save explains it")
        elif skeleton.shapes.get(parameter) != tuple(tensor.shape):
            problems.append(_misfit(name, tensor, skeleton.shapes.get(parameter)))
        else:
            changes.changes[parameter] = Change(replacement=tensor)
    for module, parts in pairs.items():
        change = _product(module, parts, config, skeleton, problems)
        if change is not None:
            changes.changes[f"{module}.weight"] = change
    if problems:
        raise IntegrityError(f"{folder}: cannot be merged into this base:\n  " + listing(problems),
                             "Is it an adapter for another base, or damaged?")
    return changes


def _refuse(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise IntegrityError for a setting under which merged weights would not be the adapter."""
    init = config.get("init_lora_weights", True)
    if changes_base(init):
        raise IntegrityError(
            f"{folder}: init_lora_weights is {init!r}: training began by changing the base's weights, and "
            "the adapter does not say how",
            "Convert it to a plain LoRA first (PEFT: save_pretrained with "
            "path_initial_model_for_weight_conversion).")
    if key := unsupported_setting(config, MERGE):
        raise IntegrityError(f"{folder}: cannot be merged: {key} is {config[key]!r}: {SETTINGS[key].reason}",
                             _HINT)


def _split(name: str) -> tuple[str, str]:
    """(module, what follows) of a tensor in the adapter's file."""
    name = name.removeprefix(_PREFIX)
    for ending in ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B",
                   "base_layer.weight"):
        if name.endswith("." + ending):
            return name[:-len(ending) - 1], ending
    module, _, last = name.rpartition(".")
    return (module, last) if module else (name, "")


def _is_saved(parameter: str, modules_to_save: list[str]) -> bool:
    """Whether a parameter lies in a module that was learnt as a whole; PEFT goes by how names end."""
    parts = parameter.split(".")
    parents = [".".join(parts[:count]) for count in range(1, len(parts))]
    return any(parent.endswith(saved) for parent in parents for saved in modules_to_save)


def _misfit(name: str, tensor: torch.Tensor, wanted: tuple[int, ...] | None) -> str:
    if wanted is None:
        return f"{name}: not in this base"
    return f"{name}: {list(tensor.shape)} in the adapter, {list(wanted)} in this base"


def _product(module: str, parts: dict[str, torch.Tensor], config: Any, skeleton: Skeleton,
             problems: list[str]) -> Change | None:
    """The change that a pair of LoRA matrices makes; None, and a problem more, when it does not fit."""
    from peft.utils.other import get_pattern_key

    kind = skeleton.kinds.get(module)
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, module), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, module), config.lora_alpha)
    if kind is None:
        exists = any(name.startswith(module + ".") for name in skeleton.shapes)
        problems.append(f"{module}: {'no linear layer and no embedding' if exists else 'not in this base'}")
        return None
    a_name, b_name = (("lora_embedding_A", "lora_embedding_B") if kind == "embedding"
                      else ("lora_A.weight", "lora_B.weight"))
    if set(parts) != {a_name, b_name}:
        problems.append(f"{module}: has {', '.join(sorted(parts))}; {a_name} and {b_name} are wanted")
        return None
    a_RI, b_OR = parts[a_name], parts[b_name]
    rows, columns = skeleton.shapes[f"{module}.weight"]
    outputs, inputs = (rows, columns) if kind == "linear" else (columns, rows)
    misfits = [_misfit(f"{module}.{name}", tensor, wanted)
               for name, tensor, wanted in ((a_name, a_RI, (rank, inputs)), (b_name, b_OR, (outputs, rank)))
               if tuple(tensor.shape) != wanted]
    problems += misfits
    if misfits:
        return None
    scale = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
    left, right = (b_OR, a_RI) if kind == "linear" else (a_RI.T, b_OR.T)  # Conv1D and embeddings keep [I, O]
    return Change(left.float(), right.float(), scale)
