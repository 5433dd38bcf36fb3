"""Phi-3, Phi-3.5, Phi-4 (https://arxiv.org/abs/2404.14219): Llama's shape, fused qkv, fused gate and up.

RoPE may turn a part of each head, and its frequencies may change with a sample's length (longrope,
https://arxiv.org/abs/2402.13753). An adapter on `qkv_proj` has one A for q, k and v together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunesmith.model.families import llama
from tunesmith.model.families.parts import Architecture, IntOrNull, Layer, Projection, Rope, typed

DEFAULTS: dict[str, Any] = {**llama.DEFAULTS, "rms_norm_eps": 1e-5, "sliding_window": IntOrNull(None)}
PEFT_TARGETS = None
GGUF = None


def describe(config: Mapping[str, Any]) -> Architecture:
    """A Phi-3 from its config.json."""
    values = typed(config, DEFAULTS)
    architecture = llama.assemble(config, values, llama.Biases(),
                                  windows=lambda number: values["sliding_window"] or None)
    scaling = llama.scaling_of(config)
    # transformers reads the two older names of it alike.
    rope = Rope("longrope" if scaling in ("su", "yarn") else scaling, llama.rotated_share(config))
    return replace(architecture, layers=tuple(map(_fused, architecture.layers)), ropes={"all": rope})


def _fused(layer: Layer) -> Layer:
    """The layer with one module for q, k and v, and one for gate and up."""
    return replace(layer, qkv=_one(layer.qkv, "qkv_proj"), mlp_input=_one(layer.mlp_input, "gate_up_proj"))


def _one(parts: Projection, name: str) -> Projection:
    place = next(iter(parts.outputs)).rpartition(".")[0]
    return replace(parts, outputs={f"{place}.{name}": sum(parts.outputs.values())})


def lacks(config: Mapping[str, Any], architecture: Architecture) -> str | None:
    """What the native engine has no part for; None where it has all."""
    for name in ("resid_pdrop", "embd_pdrop"):
        if config.get(name):
            return f"{name} is {config[name]} in the base's config"
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        return f"hidden_act is {activation!r} in the base's config"
    rope = (architecture.ropes or {})["all"]
    if rope.scaling not in ("default", "longrope"):
        return f"its RoPE scaling is {rope.scaling!r}"
    rotary = int(architecture.heads.width * rope.share)
    return None if rotary >= 2 and rotary % 2 == 0 else f"its RoPE turns {rotary} channels of each head"
