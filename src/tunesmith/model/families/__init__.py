"""The model families whose parts are known here, one file each; everything else goes to transformers.

A family's file has: `DEFAULTS` (what its config.json may leave out, as transformers takes it), `describe`
(config -> `parts.Architecture`), `lacks` (what of a config the native engine has no part for), `PEFT_TARGETS`
(what PEFT's own table puts an adapter on; None where the table lacks the family) and `GGUF` (its place there;
None where none is known).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tunesmith.model.base_config import own_quantization
from tunesmith.model.families import bloom, granite, llama, mistral, phi3, qwen2, qwen3, smollm3
from tunesmith.model.families.parts import Architecture, Gguf

__all__ = ["FAMILIES", "Architecture", "Family", "Gguf", "describe", "peft_targets", "why_not_native"]

#: The widest head that the attention kernels take.
_WIDEST_HEAD = 256


class Family(Protocol):
    """What a family's file has."""

    DEFAULTS: dict[str, Any]

    @property
    def PEFT_TARGETS(self) -> tuple[str, ...] | None: ...  # noqa: D102
    @property
    def GGUF(self) -> Gguf | None: ...  # noqa: D102
    def describe(self, config: Mapping[str, Any]) -> Architecture: ...  # noqa: D102
    def lacks(self, config: Mapping[str, Any], architecture: Architecture) -> str | None: ...  # noqa: D102


#: By transformers' `model_type`.
FAMILIES: dict[str, Family] = {
    "bloom": bloom, "granite": granite, "llama": llama, "mistral": mistral, "phi3": phi3, "qwen2": qwen2,
    "qwen3": qwen3, "smollm3": smollm3}


def describe(config: Mapping[str, Any]) -> Architecture | None:
    """The parts of a base from its config.json; None for a family that is not known here.

    Raises KeyError, TypeError or ValueError naming what the config lacks.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    return None if family is None else family.describe(config)


def peft_targets(model_type: str) -> tuple[str, ...] | None:
    """The modules that PEFT's table puts an adapter on, where the family is known here and there."""
    family = FAMILIES.get(model_type)
    return family.PEFT_TARGETS if family else None


def why_not_native(config: Mapping[str, Any]) -> str | None:
    """Why the native engine does not take this base; None when it does. From config.json alone."""
    kind = config.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None:
        return f"it does not know the architecture {kind!r}"
    if own_quantization(config) is not None:
        return "the checkpoint is quantised already"
    for name in ("hidden_dropout", "attention_dropout"):
        if config.get(name):
            return f"{name} is {config[name]} in the base's config"
    try:
        architecture = family.describe(config)
        reason = family.lacks(config, architecture)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError) as error:
        return f"its config.json has no usable {error}"
    width = architecture.heads.width
    if reason is None and (width < 2 or width % 2 or width > _WIDEST_HEAD):
        return f"a head of {width} channels is odd or wider than {_WIDEST_HEAD}"
    return reason
