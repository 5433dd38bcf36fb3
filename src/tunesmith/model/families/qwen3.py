"""Qwen3 (https://arxiv.org/abs/2505.09388): Llama's shape, RMSNorm of each q and k head, wide heads (128)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.model.families import llama
from tunesmith.model.families.llama import PEFT_TARGETS, lacks
from tunesmith.model.families.parts import Architecture, Gguf, IntOrNull, typed
from tunesmith.model.families.qwen2 import windows_of

__all__ = ["DEFAULTS", "GGUF", "PEFT_TARGETS", "describe", "lacks"]

DEFAULTS: dict[str, Any] = {**llama.DEFAULTS, "num_key_value_heads": IntOrNull(32), "head_dim": 128}


def _llama_cpp_lacks(config: Any) -> str | None:
    if config.attention_bias:
        return "its attention has biases (attention_bias), which llama.cpp's qwen3 does not read"
    return None


GGUF = Gguf("qwen3", "model.", {}, _llama_cpp_lacks)


def describe(config: Mapping[str, Any]) -> Architecture:
    """A Qwen3 from its config.json."""
    values = typed(config, {**DEFAULTS, "attention_bias": False})
    biases = llama.Biases(values["attention_bias"], values["attention_bias"])
    return llama.assemble(config, values, biases, head_norms=True, windows=windows_of(config))
