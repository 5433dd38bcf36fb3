"""What a base's config.json says of whether, and how, it can be trained here; read before its weights.

transformers takes a second to import, so it is only where it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunesmith.errors import IntegrityError, RecipeError
from tunesmith.model.quantization import AS_THEY_ARE, WAYS, choices

_OTHER_FORMATS = (
    r"weight_scale(_inv|_2)?|.*_scale_inv|input_scale|scales|qweight|qzeros|g_idx|.*_blocks|.*_scales|"
    r"weight_packed|weight_zero_point|weight_shape")
#: Names of the tensors that quantisation formats, those known here and others, put beside a weight.
QUANTISATION_TENSORS = re.compile(
    r"(^|\.)("
    + "|".join([way.tensors_beside for way in WAYS.values() if way.tensors_beside] + [_OTHER_FORMATS])
    + ")$"
)
_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
#: More layers than any model has.
MOST_LAYERS = 10_000


def decoded(config: Any) -> Any:
    """A config with the infinities and NaN that transformers 5 writes as {"__float__": "Infinity"}."""
    if isinstance(config, dict):
        if set(config) == {"__float__"} and config["__float__"] in _FLOATS:
            return _FLOATS[config["__float__"]]
        return {key: decoded(value) for key, value in config.items()}
    return [decoded(value) for value in config] if isinstance(config, list) else config


def config_object(config: Mapping[str, Any]) -> Any:
    """transformers' config of a base. Raises whatever transformers' validation raises."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**decoded(dict(config)))


_TAKE_CAUSAL = "Take a causal (decoder-only) language model, such as Qwen/Qwen2.5-0.5B."


def refuse_bidirectional(config: Mapping[str, Any], name: str) -> None:
    """Raise RecipeError where the config itself says that tokens see later ones, or names an encoder."""
    kind = config["model_type"]
    if config.get("is_encoder_decoder"):
        raise RecipeError(f"{name} ({kind}) is an encoder-decoder, not a causal language model", _TAKE_CAUSAL,
                          setting="model.base")
    if config.get("use_bidirectional_attention"):
        raise RecipeError(f"{name} ({kind}) sees later tokens (use_bidirectional_attention), so it is not a "
                          "causal language model", _TAKE_CAUSAL, setting="model.base")
    if kind in ("bert-generation", "cpmant") and not config.get("is_decoder"):
        raise RecipeError(f"{name} ({kind}) lets tokens see later ones, so it is not a causal language model",
                          _TAKE_CAUSAL, setting="model.base")


def require_causal(config: Mapping[str, Any], name: str) -> None:
    """Raise RecipeError for a base whose tokens see later ones, or that has an encoder and a decoder.

    Its loss would fall for the wrong reason: what is to be predicted stands in its input.
    """
    kind, hint = config["model_type"], _TAKE_CAUSAL
    refuse_bidirectional(config, name)
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    bidirectional = (kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder")
                     and not config.get("causal"))
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not bidirectional:
        return
    if bidirectional:
        raise RecipeError(f"{name} ({kind}) is an encoder: every token sees the later ones, so it is not a "
                          "causal language model", hint, setting="model.base")
    import transformers

    raise RecipeError(f"{name}: transformers {transformers.__version__} has no causal language model for its "
                      f"architecture ({kind})",
                      "Code that comes with a model is never run. Choose a base that transformers knows.",
                      setting="model.base")


def require_possible_depth(config: Mapping[str, Any], name: str) -> None:
    """Refuse a number of layers that no model has: a damaged config.json would be built, layer by layer,
    before its weights are missed. Raises IntegrityError.
    """
    for key in ("num_hidden_layers", "n_layer"):
        layers = config.get(key)
        if isinstance(layers, int) and layers > MOST_LAYERS:
            raise IntegrityError(f"{name}: config.json: {key} is {layers}: no model has as many layers",
                                 "Copy or download the base again.")


def own_quantization(config: Mapping[str, Any]) -> str | None:
    """How a checkpoint is quantised already: in one of `WAYS`, or its method's name; None where it is not."""
    if config.get("compression_config"):
        return "compressed-tensors"
    settings = config.get("quantization_config")
    if not settings:
        return None
    if not isinstance(settings, dict):
        return "an unknown way"
    flagged = "load_in_8bit" in settings or "load_in_4bit" in settings
    method = str(settings.get("quant_method") or ("bitsandbytes" if flagged else "an unknown way"))
    if method == "bitsandbytes":
        for way in WAYS.values():
            if way.keeps(settings):
                return way.name
        method = (str(settings.get("bnb_4bit_quant_type", "fp4")) if settings.get("load_in_4bit") is True
                  else "an unknown way")
    return f"the method {method}" if method in WAYS else method


def require_agreement(config: Mapping[str, Any], name: str, quantization: str) -> None:
    """Raise RecipeError where the recipe's `model.quantization` is not how the checkpoint is kept.

    A checkpoint that is kept in one of `WAYS` is taken as it is under that name alone; one in FP8 or MXFP4 is
    turned back to 16 bits under `none`; others are not trained here.
    """
    own = own_quantization(config)
    if own is None or own == quantization:
        return
    if own in WAYS:
        raise RecipeError(f"{quantization}, but {name} is kept in {own} (bitsandbytes) already",
                          f"Set model.quantization to {own}, or name the model that it was made from.",
                          setting="model.quantization")
    if own in DEQUANTIZED:
        if quantization == AS_THEY_ARE:
            return
        raise RecipeError(f"{quantization}, but {name} is kept in {own} already",
                          f"Set model.quantization to {AS_THEY_ARE} (its weights are then turned back to 16 "
                          "bits), or name the model that it was made from.", setting="model.quantization")
    raise RecipeError(f"{name} is kept in {own}, which is not trained here",
                      "Name the model that it was made from; model.quantization keeps it in "
                      f"{choices(way.name for way in WAYS.values() if way.quantised)}.", setting="model.base")


#: Ways of keeping weights that transformers turns back to 16 bits while it reads them, with its class for it.
DEQUANTIZED = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}


def require_computable(config: Mapping[str, Any], name: str, quantization: str, device: str) -> None:
    """Raise RecipeError for what a library is known to fail at, before it does so in the middle of a run."""
    if reason := WAYS[quantization].fails_on(config, device):
        others = [way.name for way in WAYS.values() if way.fails_on(config, device) is None]
        raise RecipeError(f"{quantization} fails for {name} on {device}: {reason}",
                          f"Set model.quantization to {choices(others)}.", setting="model.quantization")
