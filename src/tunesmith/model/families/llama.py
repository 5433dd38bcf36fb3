"""Llama 2 and 3 (Touvron et al. 2023, https://arxiv.org/abs/2302.13971): RMSNorm, RoPE, SwiGLU, GQA.

`assemble` is the line's common shape; a family of the line is a file that says what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.model.families.parts import (
    Architecture,
    Gguf,
    Heads,
    IntOrNull,
    Layer,
    Norm,
    Projection,
    Rope,
    require_heads,
    require_layers,
    typed,
)

#: What a config.json of the line must say, and what it may leave out.
REQUIRED: dict[str, Any] = {"vocab_size": int, "hidden_size": int, "intermediate_size": int,
                            "num_hidden_layers": int, "num_attention_heads": int}
DEFAULTS: dict[str, Any] = {**REQUIRED, "num_key_value_heads": IntOrNull(None),
                            "head_dim": IntOrNull(None), "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
PEFT_TARGETS: tuple[str, ...] | None = ("q_proj", "v_proj")
GGUF = Gguf("llama", "model.", {"q_proj": "rope_pairs", "k_proj": "rope_pairs"})


@dataclass(frozen=True)
class Biases:
    """Which linear modules have one."""

    qkv: bool = False
    output: bool = False
    mlp: bool = False


def describe(config: Mapping[str, Any]) -> Architecture:
    """A Llama from its config.json."""
    values = typed(config, {**DEFAULTS, "attention_bias": False, "mlp_bias": False})
    attention = values["attention_bias"]
    return assemble(config, values, Biases(attention, attention, values["mlp_bias"]))


def assemble(config: Mapping[str, Any], values: Mapping[str, Any], biases: Biases, *,
             head_norms: bool = False,
             windows: Callable[[int], int | None] = lambda number: None) -> Architecture:
    """The line's shape. values: of `typed`. head_norms: q and k heads are normed. windows: of each layer."""
    hidden, layers = values["hidden_size"], require_layers(values["num_hidden_layers"])
    queries = values["num_attention_heads"]
    keys = values["num_key_value_heads"] if values["num_key_value_heads"] is not None else queries
    heads = require_heads(hidden, queries, keys, values["head_dim"])

    def layer(number: int) -> Layer:
        plain = _layer(f"model.layers.{number}", values, heads, biases, windows(number))
        if not head_norms:
            return plain
        q, k = (Norm(f"model.layers.{number}.self_attn.{each}_norm", heads.width, values["rms_norm_eps"])
                for each in "qk")
        return replace(plain, head_norms=(q, k))

    return Architecture(
        config["model_type"], hidden, values["vocab_size"], heads, "model.embed_tokens",
        tuple(layer(number) for number in range(layers)), Norm("model.norm", hidden, values["rms_norm_eps"]),
        values["tie_word_embeddings"], ropes={"all": Rope(scaling_of(config), rotated_share(config))})


def _layer(name: str, values: Mapping[str, Any], heads: Heads, biases: Biases, window: int | None) -> Layer:
    hidden, inner, eps = values["hidden_size"], values["intermediate_size"], values["rms_norm_eps"]
    q_width, k_width = heads.queries * heads.width, heads.keys * heads.width
    attention, mlp = f"{name}.self_attn", f"{name}.mlp"
    return Layer(
        Norm(f"{name}.input_layernorm", hidden, eps),
        Projection(hidden, {f"{attention}.q_proj": q_width, f"{attention}.k_proj": k_width,
                            f"{attention}.v_proj": k_width}, biases.qkv),
        Projection(q_width, {f"{attention}.o_proj": hidden}, biases.output),
        Norm(f"{name}.post_attention_layernorm", hidden, eps),
        Projection(hidden, {f"{mlp}.gate_proj": inner, f"{mlp}.up_proj": inner}, biases.mlp),
        Projection(inner, {f"{mlp}.down_proj": hidden}, biases.mlp),
        "swiglu", rope="all", window=window)


def rope_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config says of RoPE: `rope_parameters` (transformers 5), or the older `rope_scaling`."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(settings, Mapping):
        raise TypeError(f"rope_parameters: it is {settings!r}")
    return settings


def scaling_of(config: Mapping[str, Any]) -> str:
    """RoPE's scaling: default, linear, llama3, yarn, longrope, dynamic, ..."""
    settings = rope_settings(config)
    return str(settings.get("rope_type", settings.get("type", "default")))


def rotated_share(config: Mapping[str, Any]) -> float:
    """The share of each head's channels that RoPE turns."""
    return float(rope_settings(config).get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1)


def lacks(config: Mapping[str, Any], architecture: Architecture) -> str | None:
    """What of the line's configs the native engine has no part for; None where it has all."""
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        return f"hidden_act is {activation!r} in the base's config"
    for rope in (architecture.ropes or {}).values():
        if rope.scaling not in ("default", "linear", "llama3", "yarn"):
            return f"its RoPE scaling is {rope.scaling!r}"
        if rope.share != 1:
            return "its RoPE turns only a part of each head"
    return None
