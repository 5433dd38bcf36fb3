"""Which bases the native engine knows, by their config.json alone. No torch here: it is asked before anything is loaded."""

from __future__ import annotations

from typing import Any

from tunesmith.model.base_config import own_quantization

#: Families that share the Llama decoder.
LLAMA_LINE = ("llama", "mistral", "qwen2", "qwen3")
#: What PEFT's own table puts an adapter on in these families; a test holds the two together.
AUTO_TARGETS = {"bloom": ["query_key_value"], **{key: ["q_proj", "v_proj"] for key in LLAMA_LINE}}
#: RoPE scalings whose frequencies do not change with the length of a row.
_ROPES = ("default", "linear", "llama3", "yarn")
_WIDEST_HEAD = 256
#: transformers' own defaults, for configs that leave these out.
_MISTRAL_WINDOW, _QWEN_LAYERS, _QWEN_FULL_LAYERS = 4096, 32, 28


def why_not(config: dict[str, Any]) -> str | None:
    """Why the native engine does not take this base; None when it does."""
    try:
        return _why_not(config)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        return f"its config.json has no usable {error}"


def _why_not(config: dict[str, Any]) -> str | None:
    kind = config.get("model_type")
    if kind != "bloom" and kind not in LLAMA_LINE:
        return f"it does not know the architecture {kind!r}"
    if own_quantization(config) is not None:
        return "the checkpoint is quantised already"
    for name in ("hidden_dropout", "attention_dropout"):
        if config.get(name):
            return f"{name} is {config[name]} in the base's config"
    return _why_not_bloom(config) if kind == "bloom" else _why_not_llama(config)


def _why_not_bloom(config: dict[str, Any]) -> str | None:
    if config.get("apply_residual_connection_post_layernorm"):
        return "apply_residual_connection_post_layernorm is set in the base's config"
    hidden = int(config.get("hidden_size", config.get("n_embed", 64)))
    return _why_not_head(hidden, int(config.get("n_head", config.get("num_attention_heads", 8))), None)


def _why_not_llama(config: dict[str, Any]) -> str | None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        return f"hidden_act is {activation!r} in the base's config"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling not in _ROPES:
        return f"its RoPE scaling is {scaling!r}"
    if float(rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1) != 1:
        return "its RoPE turns only a part of each head"
    if len(_layer_kinds(config)) > 1:
        return "its layers differ in how far they see"
    return _why_not_head(int(config["hidden_size"]), int(config["num_attention_heads"]), config.get("head_dim"))


def _why_not_head(hidden: int, heads: int, width: int | None) -> str | None:
    if min(hidden, heads) < 1 or (width is None and hidden % heads):
        return f"{hidden} channels do not divide into {heads} heads"
    width = int(width or hidden // heads)
    if width < 2 or width % 2 or width > _WIDEST_HEAD:
        return f"a head of {width} channels is odd or wider than {_WIDEST_HEAD}"
    return None


def _layer_kinds(config: dict[str, Any]) -> set[str]:
    """How far its layers see: `full_attention`, `sliding_attention` or both."""
    if config.get("layer_types"):
        return set(config["layer_types"])
    if config.get("model_type") == "mistral":
        return {"sliding_attention" if config.get("sliding_window", _MISTRAL_WINDOW) else "full_attention"}
    if not config.get("use_sliding_window") or not config.get("sliding_window"):
        return {"full_attention"}
    layers = int(config.get("num_hidden_layers", _QWEN_LAYERS))
    full = int(config.get("max_window_layers", _QWEN_FULL_LAYERS))  # the first so many see everything
    return {"full_attention" if layer < full else "sliding_attention" for layer in range(layers)}


def window(config: dict[str, Any]) -> int | None:
    """How many tokens back a token of the Llama line sees, itself counted; None for all."""
    size = config.get("sliding_window", _MISTRAL_WINDOW if config.get("model_type") == "mistral" else None)
    return int(size) if size and _layer_kinds(config) == {"sliding_attention"} else None
