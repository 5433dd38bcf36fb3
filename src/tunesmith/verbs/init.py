"""`tunesmith init`: write a commented recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.recipe import parse_recipe, preset_text, render_commented
from tunesmith.rundir import write_atomically

DEFAULT_PRESET = "bloom-7b1-quotes"


def init(path: str | os.PathLike[str] = "recipe.yaml", *, preset: str = DEFAULT_PRESET) -> dict[str, Any]:
    """Write a preset as a recipe in which every setting stands with its meaning and unit.

    Returns {"recipe": the path, "preset": its name}. Raises UsageError when the file exists, RecipeError for
    an unknown preset, DiskError.
    """
    path = Path(path)
    text = preset_text(preset)
    if path.is_dir():
        path = path / "recipe.yaml"
    if path.exists():
        raise UsageError(f"{path} exists already",
                         f"Choose another name: tunesmith init {path.with_stem(path.stem + '-2')}")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder", f"Make it first: mkdir -p {path.parent}")
    comment = [line.removeprefix("#").strip() for line in text.split("\n\n")[0].splitlines()
               if line.startswith("#")]
    header = "\n".join([" ".join(line for line in comment if line and not line.startswith("tunesmith ")), "",
                        f"tunesmith plan {path.name}", f"tunesmith train {path.name}"])
    write_atomically(path, render_commented(parse_recipe(text, name=preset), header))
    return {"recipe": str(path), "preset": preset}
