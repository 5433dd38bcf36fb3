"""SmolLM3 (https://huggingface.co/blog/smollm3): Llama's shape, no positions in every 4th layer (NoPE)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunesmith.model.families import llama
from tunesmith.model.families.llama import lacks
from tunesmith.model.families.parts import Architecture, IntOrNull, typed

__all__ = ["DEFAULTS", "GGUF", "PEFT_TARGETS", "describe", "lacks"]

DEFAULTS: dict[str, Any] = {**llama.DEFAULTS, "num_key_value_heads": IntOrNull(4),
                            "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
                            "use_sliding_window": False, "sliding_window": IntOrNull(None),
                            "no_rope_layer_interval": 4}
PEFT_TARGETS = None
GGUF = None


def describe(config: Mapping[str, Any]) -> Architecture:
    """A SmolLM3 from its config.json."""
    values = typed(config, DEFAULTS)
    rotary = _rotary_layers(config, values)
    sliding = _sliding(config, values, rotary)
    biases = llama.Biases(values["attention_bias"], values["attention_bias"], values["mlp_bias"])
    architecture = llama.assemble(config, values, biases, windows=lambda number: sliding[number])
    layers = tuple(replace(layer, rope="all" if rotary[number] else None)
                   for number, layer in enumerate(architecture.layers))
    return replace(architecture, layers=layers)


def _rotary_layers(config: Mapping[str, Any], values: Mapping[str, Any]) -> list[bool]:
    """Which layers RoPE turns: by `no_rope_layers`, else all but each `no_rope_layer_interval`th."""
    given = config.get("no_rope_layers")
    if given is not None:
        return [bool(given[number]) for number in range(values["num_hidden_layers"])]
    return [(number + 1) % values["no_rope_layer_interval"] != 0
            for number in range(values["num_hidden_layers"])]


def _sliding(config: Mapping[str, Any], values: Mapping[str, Any], rotary: list[bool]) -> list[int | None]:
    """Each layer's window; where `layer_types` is left out, the layers without positions have it."""
    size = values["sliding_window"]
    if not values["use_sliding_window"] or not size:
        return [None] * len(rotary)
    kinds = config.get("layer_types") or ["full_attention" if each else "sliding_attention"
                                          for each in rotary]
    return [size if kinds[number] == "sliding_attention" else None for number in range(len(rotary))]
