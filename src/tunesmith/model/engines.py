"""Which engine takes a base, and why."""

from __future__ import annotations

from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.model.native.support import why_not


def choose_engine(wanted: str, config: dict[str, Any], matmul: str = "exact") -> tuple[str, str]:
    """(engine, why) for a base's config.json.

    Raises RecipeError when `native` is asked for and does not take the base, or 8-bit products and native is not it.
    """
    reason = "hf is asked for" if wanted == "hf" else why_not(config)
    if matmul != "exact" and reason:
        raise RecipeError(f"train.matmul: {matmul} is done by the native engine alone, and this is not its run: {reason}",
                          "Set train.matmul to exact.")
    if wanted == "hf":
        return "hf", "asked for"
    if wanted == "native":
        if reason:
            raise RecipeError(f"train.engine: the native engine does not take this base: {reason}",
                              "Set train.engine to auto or hf.")
        return "native", "asked for"
    if reason:
        return "hf", f"native does not take this base: {reason}"
    return "native", f"the fast one for {config['model_type']}"
