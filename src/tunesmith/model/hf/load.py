"""Load a base through transformers: quantised, frozen, 1-d parameters in fp32."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from tunesmith.errors import EnvironmentFault, IntegrityError, OutOfMemory, RecipeError, TunesmithError
from tunesmith.model.base_config import (
    DEQUANTIZED,
    QUANTISATION_TENSORS,
    own_quantization,
    require_agreement,
    require_possible_depth,
)
from tunesmith.model.files import BaseFiles
from tunesmith.model.libraries import quiet_libraries
from tunesmith.model.placement import Placement
from tunesmith.model.quantization import WAYS, smallest


def load_frozen(base: BaseFiles, placement: Placement) -> torch.nn.Module:
    """The base, quantised as asked, every parameter frozen and the 1-d ones in fp32.

    Raises IntegrityError when weights are missing or do not fit the config, RecipeError for an
    architecture that transformers does not know as a causal language model, OutOfMemory.
    """
    quiet_libraries()
    quantization, device, dtype = placement.quantization, placement.device, placement.dtype
    require_possible_depth(base.config, base.name)
    require_agreement(base.config, base.name, quantization)
    way = WAYS[quantization]
    quantization_config = _quantization_config(base, way.transformers_config(dtype))
    auto_model: Any = AutoModelForCausalLM
    try:
        model, info = auto_model.from_pretrained(
            base.folder, dtype=dtype, use_safetensors=True, trust_remote_code=False,
            device_map="auto" if placement.spread else {"": device}, output_loading_info=True,
            **({} if quantization_config is None else {"quantization_config": quantization_config}))
    except torch.OutOfMemoryError:
        raise OutOfMemory(f"{base.name} in {quantization} does not fit on {device}",
                          f"Quantise it further (model.quantization: {smallest()}) or choose a smaller base.",
                          setting="model.base") from None
    except ValueError as error:
        if "dispatched on the CPU or the disk" in str(error):
            raise OutOfMemory(
                f"{base.name} in {quantization} does not fit on the GPUs here",
                f"Quantise it further (model.quantization: {smallest()}) or choose a smaller base.",
                setting="model.base") from None
        if "Unrecognized" in str(error) or "model_type" in str(error) or "trust_remote_code" in str(error):
            raise RecipeError(
                f"{base.name}: transformers {transformers.__version__} has no causal language model for its "
                f"architecture ({base.architecture})",
                "Code that comes with a model is never run. Choose a base that transformers knows.",
                setting="model.base") from None
        raise IntegrityError(f"{base.name} cannot be loaded: {str(error).splitlines()[0]}",
                             setting="model.base") from None
    except ImportError as error:
        raise EnvironmentFault(f"{base.name} needs a package that is missing: {error}",
                               setting="model.base") from None
    except TunesmithError:  # a signal of the user's
        raise
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, ArithmeticError, IndexError,
            SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise IntegrityError(f"{base.name} cannot be loaded: {reason}",
                             "Its weights may be incomplete, or not those of its config.json.",
                             setting="model.base") from None
    if unusable := sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])}):
        # transformers would fill these with random numbers and go on
        raise IntegrityError(f"{base.name} lacks weights that its config.json calls for, such as "
                             f"{unusable[0]} ({len(unusable)} in all)", "Copy or download the base again.",
                             setting="model.base")
    _refuse_unread_scales(base, info["unexpected_keys"])
    _require_whole_weights(model, base)
    _require_on_gpus(model, base, quantization, device)
    way.prepare(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1 and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32)
    model.config.use_cache = False
    loaded: torch.nn.Module = model
    return loaded


def _quantization_config(base: BaseFiles, wanted: Any) -> Any:
    """What to ask transformers for; no argument where the checkpoint says it: None would wipe that out."""
    own = own_quantization(base.config)
    if own in DEQUANTIZED:
        return getattr(transformers, DEQUANTIZED[own])(dequantize=True)
    return None if own is not None else wanted


def _refuse_unread_scales(base: BaseFiles, unexpected: Iterable[Any]) -> None:
    """Raise IntegrityError where scales were left behind: then codes were read as if they were weights."""
    scales = sorted(str(key) for key in unexpected if QUANTISATION_TENSORS.search(str(key)))
    if scales:
        raise IntegrityError(
            f"{base.name} has weights in few bits whose scales ({scales[0]}, {len(scales)} in all) nothing "
            "reads: its config.json does not say how they are kept",
            "Take a copy of the base with its quantization_config, or the model that it was made from.",
            setting="model.base")


def _require_whole_weights(model: torch.nn.Module, base: BaseFiles) -> None:
    """Raise IntegrityError for a quantised weight without its scales: it is not kept as its config says."""
    # what no other way keeps is to be of floats
    ways = sorted(WAYS.values(), key=lambda way: not way.quantised)
    for name, module in model.named_modules():
        if not isinstance(getattr(module, "weight", None), torch.Tensor):
            continue
        if next((whole for way in ways if (whole := way.is_whole(module)) is not None), None) is False:
            raise IntegrityError(f"{base.name}: {name}.weight is not kept as its config.json says",
                                 "Copy or download the base again, or take the model that it was made from.",
                                 setting="model.base")


def _require_on_gpus(model: torch.nn.Module, base: BaseFiles, quantization: str, device: str) -> None:
    """Raise OutOfMemory where accelerate put layers on the CPU or the disk, slow and unseen."""
    places = getattr(model, "hf_device_map", None) or {}
    elsewhere = sorted(name for name, place in places.items() if str(place) in ("cpu", "disk"))
    if device.startswith("cuda") and elsewhere:
        raise OutOfMemory(f"{base.name} in {quantization} does not fit on the GPUs here: {len(elsewhere)} of "
                          f"its parts ({elsewhere[0]}, ...) would lie on the CPU or the disk",
                          f"Quantise it further (model.quantization: {smallest()}) or choose a smaller base.",
                          setting="model.base")
