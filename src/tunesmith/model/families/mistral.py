"""Mistral (Jiang et al. 2023, https://arxiv.org/abs/2310.06825): Llama's shape, maybe with windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.model.families import llama
from tunesmith.model.families.llama import GGUF, PEFT_TARGETS, lacks
from tunesmith.model.families.parts import Architecture, IntOrNull, typed

__all__ = ["DEFAULTS", "GGUF", "PEFT_TARGETS", "describe", "lacks"]

DEFAULTS: dict[str, Any] = {**llama.DEFAULTS, "num_key_value_heads": IntOrNull(8),
                            "sliding_window": IntOrNull(4096)}


def describe(config: Mapping[str, Any]) -> Architecture:
    """A Mistral from its config.json."""
    values = typed(config, DEFAULTS)
    return llama.assemble(config, values, llama.Biases(),
                          windows=lambda number: values["sliding_window"] or None)
