"""Recipes to begin from. The same files stand in `recipes/` at the top of the repository."""

from __future__ import annotations

from importlib import resources

from tunesmith.errors import RecipeError


def preset_names() -> list[str]:
    """The presets that `tunesmith init --preset` knows."""
    return sorted(item.name.removesuffix(".yaml") for item in resources.files(__name__).iterdir()
                  if item.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """The YAML of a preset. Raises RecipeError for an unknown name."""
    if name not in preset_names():
        raise RecipeError(f"no preset {name!r}", f"There are: {', '.join(preset_names())}")
    return (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
