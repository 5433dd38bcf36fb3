"""Which engine takes a base, and why."""

from __future__ import annotations

from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.model.families import why_not_native
from tunesmith.model.quantization import smallest


def choose_engine(wanted: str, config: dict[str, Any], matmul: str = "exact") -> tuple[str, str]:
    """(engine, why) for a base's config.json.

    Raises RecipeError when `native` is asked for and does not take the base, or 8-bit products and native is
    not it.
    """
    reason = "hf is asked for" if wanted == "hf" else why_not_native(config)
    if matmul != "exact" and reason:
        raise RecipeError(f"{matmul} is done by the native engine alone, and this is not its run: {reason}",
                          "Set train.matmul to exact.", setting="train.matmul")
    if wanted == "hf":
        return "hf", "asked for"
    if wanted == "native":
        if reason:
            raise RecipeError(f"the native engine does not take this base: {reason}",
                              "Set train.engine to auto or hf.", setting="train.engine")
        return "native", "asked for"
    if reason:
        return "hf", f"native does not take this base: {reason}"
    return "native", f"the fast one for {config['model_type']}"


def settle_engine(engine: str, reason: str, spread: str | None, *, wanted: str,
                  matmul: str) -> tuple[str, str]:
    """(engine, why), once it is known whether the base goes on several GPUs. Nothing after this changes it.

    engine, reason: of `choose_engine`. spread: of `device.why_spread`. wanted: the recipe's engine.
    Raises RecipeError where the native engine, or its 8-bit products, were asked for.
    """
    if engine != "native" or spread is None:
        return engine, reason
    hint = f"Quantise it further (model.quantization: {smallest()}), name one GPU (model.device: cuda:0), or "
    if wanted == "native":
        raise RecipeError(f"native runs on one GPU, and {spread}", hint + "set train.engine to auto.",
                          setting="train.engine")
    if matmul != "exact":
        raise RecipeError(f"{matmul} is done by the native engine alone, which runs on one GPU, and {spread}",
                          hint + "set train.matmul to exact.", setting="train.matmul")
    return "hf", spread
