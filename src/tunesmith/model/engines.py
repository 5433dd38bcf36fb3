"""Which engine takes a base, and why."""

from __future__ import annotations

from tunesmith.errors import RecipeError


def choose_engine(wanted: str, architecture: str) -> tuple[str, str]:
    """(engine, why). Raises RecipeError when `native` is asked for and does not know the architecture."""
    if wanted == "native":
        raise RecipeError(f"train.engine: the native engine does not know the architecture {architecture!r}",
                          "Set train.engine to auto or hf.")
    return "hf", "asked for" if wanted == "hf" else f"the engine for every family, {architecture} among them"
