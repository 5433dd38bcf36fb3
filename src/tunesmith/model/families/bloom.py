"""BLOOM (Le Scao et al. 2022, https://arxiv.org/abs/2211.05100): LayerNorm, ALiBi, GELU, fused qkv."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.model.families.parts import (
    Architecture,
    Gguf,
    Heads,
    Layer,
    Norm,
    Projection,
    require_heads,
    require_layers,
    typed,
)

DEFAULTS: dict[str, Any] = {"vocab_size": 250880, "hidden_size": 64, "n_layer": 2, "n_head": 8,
                            "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
#: Other names that a config.json may have for these.
_OTHER_NAMES = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
PEFT_TARGETS: tuple[str, ...] | None = ("query_key_value",)
GGUF = Gguf("bloom", "transformer.", {"query_key_value": "qkv_apart"})


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is read of a config.json, with what it leaves out, as transformers takes it.

    Raises TypeError for a value of another type.
    """
    renamed = {name: config[other] for other, name in _OTHER_NAMES.items() if config.get(other) is not None}
    return typed({**config, **renamed}, DEFAULTS)


def describe(config: Mapping[str, Any]) -> Architecture:
    """A BLOOM from its config.json."""
    if config.get("vocab_size") is None:
        raise KeyError("vocab_size")
    values = completed(config)
    hidden, eps = values["hidden_size"], values["layer_norm_epsilon"]
    grouped = require_heads(hidden, values["n_head"], values["n_head"], None)
    heads = Heads(grouped.queries, grouped.keys, grouped.width, interleaved=True)

    def norm(name: str) -> Norm:
        return Norm(f"transformer.{name}", hidden, eps, shift=True)

    def layer(number: int) -> Layer:
        place = f"transformer.h.{number}"
        return Layer(
            norm(f"h.{number}.input_layernorm"),
            Projection(hidden, {f"{place}.self_attention.query_key_value": 3 * hidden}, bias=True),
            Projection(hidden, {f"{place}.self_attention.dense": hidden}, bias=True),
            norm(f"h.{number}.post_attention_layernorm"),
            Projection(hidden, {f"{place}.mlp.dense_h_to_4h": 4 * hidden}, bias=True),
            Projection(4 * hidden, {f"{place}.mlp.dense_4h_to_h": hidden}, bias=True), "gelu")

    return Architecture(
        "bloom", hidden, values["vocab_size"], heads, "transformer.word_embeddings",
        tuple(layer(number) for number in range(require_layers(values["n_layer"]))), norm("ln_f"),
        values["tie_word_embeddings"], embedding_norm=norm("word_embeddings_layernorm"), alibi=True)


def lacks(config: Mapping[str, Any], architecture: Architecture) -> str | None:
    """What the native engine has no part for; None where it has all."""
    if config.get("apply_residual_connection_post_layernorm"):
        return "apply_residual_connection_post_layernorm is set in the base's config"
    return None
