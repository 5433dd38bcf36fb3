"""Qwen2, Qwen2.5 (https://arxiv.org/abs/2407.10671): Llama's shape, qkv biases, windows in some layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tunesmith.model.families import llama
from tunesmith.model.families.llama import PEFT_TARGETS, lacks
from tunesmith.model.families.parts import Architecture, Gguf, IntOrNull, typed

__all__ = ["DEFAULTS", "GGUF", "PEFT_TARGETS", "describe", "lacks", "windows_of"]

DEFAULTS: dict[str, Any] = {**llama.DEFAULTS, "num_key_value_heads": IntOrNull(32)}
_WINDOWS = {"use_sliding_window": False, "sliding_window": IntOrNull(4096), "max_window_layers": 28}
GGUF = Gguf("qwen2", "model.", {})


def describe(config: Mapping[str, Any]) -> Architecture:
    """A Qwen2 from its config.json."""
    return llama.assemble(config, typed(config, DEFAULTS), llama.Biases(qkv=True), windows=windows_of(config))


def windows_of(config: Mapping[str, Any]) -> Callable[[int], int | None]:
    """Each layer's window, if `use_sliding_window`: by `layer_types`, else from `max_window_layers` on."""
    values = typed(config, _WINDOWS)
    size = values["sliding_window"]
    if not values["use_sliding_window"] or not size:
        return lambda number: None
    kinds = config.get("layer_types")
    if kinds:
        return lambda number: size if kinds[number] == "sliding_attention" else None
    return lambda number: size if number >= values["max_window_layers"] else None
