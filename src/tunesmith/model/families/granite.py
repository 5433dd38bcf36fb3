"""Granite 3 (https://github.com/ibm-granite/granite-3.0-language-models): Llama's shape and four scalars.

The embedding, what each branch adds, q k^T and the logits are each multiplied by a number of the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunesmith.model.families import llama
from tunesmith.model.families.llama import lacks
from tunesmith.model.families.parts import Architecture, typed

__all__ = ["DEFAULTS", "GGUF", "PEFT_TARGETS", "describe", "lacks"]

DEFAULTS: dict[str, Any] = {**llama.DEFAULTS, "attention_bias": False, "mlp_bias": False,
                            "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
                            "attention_multiplier": 1.0, "logits_scaling": 1.0}
PEFT_TARGETS = None
GGUF = None


def describe(config: Mapping[str, Any]) -> Architecture:
    """A Granite from its config.json."""
    values = typed(config, DEFAULTS)
    biases = llama.Biases(values["attention_bias"], values["attention_bias"], values["mlp_bias"])
    architecture = llama.assemble(config, values, biases)
    return replace(
        architecture, embedding_scale=values["embedding_multiplier"],
        residual_scale=values["residual_multiplier"], attention_scale=values["attention_multiplier"],
        final_norm=replace(architecture.final_norm, gain=1 / values["logits_scaling"]))
