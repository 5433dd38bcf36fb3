"""`tunesmith init`: write a commented recipe, from a preset or for a file."""

from __future__ import annotations

import glob
import os
import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import embedded
from tunesmith.errors import UsageError
from tunesmith.paths import expanded
from tunesmith.recipe import Recipe, parse_recipe, preset_text, render_commented
from tunesmith.rundir import write_atomically
from tunesmith.verbs.show import Show, Silent
from tunesmith.visible import on_one_line

if TYPE_CHECKING:
    from tunesmith.verbs.fit import Fit

DEFAULT_PRESET = "bloom-7b1-quotes"
#: What a recipe for a file begins with: a small chat model, or for the embedded base what suits that.
_PRESET_FOR_DATA, _PRESET_FOR_EMBEDDED = "chat", "demo"


def init(path: str | os.PathLike[str] = "recipe.yaml", *, preset: str | None = None, data: str | None = None,
         base: str | None = None, show: Show | None = None) -> dict[str, Any]:
    """Write a recipe in which every setting stands with its meaning and unit.

    preset: the recipe to begin with. data: a file, folder or Hub id, which the recipe is then made for:
    templates by what its rows are, lengths, steps and held-out rows by what it holds. base: a Hub id or local
    folder, in place of the preset's.
    Returns {"recipe": the path, "preset": its name}; with data also shape, why, columns, unused, base, chat,
    rows, rows_counted (whether these are all), held_out, validation (the setting), epochs, batch_size, steps,
    lengths (in tokens: half, most (95%), longest, and whether they are measured), max_length, and notes.
    Raises UsageError when the file exists, RecipeError for an unknown preset or base, DataError for rows of
    no known shape, NetworkError, DiskError.
    """
    path, show = _free(Path(path)), show or Silent()
    if data is not None:
        return _init_for(path, preset, data, base, show)
    preset = preset or DEFAULT_PRESET
    text = preset_text(preset)
    recipe = parse_recipe(text, name=preset)
    if base is not None:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"base": base})})
    comment = [line.removeprefix("#").strip() for line in text.split("\n\n")[0].splitlines()
               if line.startswith("#")]
    _write(path, recipe, [" ".join(line for line in comment if line and not line.startswith("tunesmith "))])
    return {"recipe": str(path), "preset": preset}


def _free(path: Path) -> Path:
    """The path of the recipe. Raises UsageError when it is taken or cannot be there."""
    if path.is_dir():
        path = path / "recipe.yaml"
    if os.path.lexists(path):
        raise UsageError(f"{path} exists already",
                         f"Choose another name: tunesmith init {path.with_stem(path.stem + '-2')}")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder", f"Make it first: mkdir -p {path.parent}")
    return path


def _write(path: Path, recipe: Recipe, comment: list[str]) -> None:
    lines = [line for text in comment for line in textwrap.wrap(text, 116) or [""]]
    name = shlex.quote(path.name)
    header = "\n".join([*lines, "", *(f"tunesmith {verb} {name}" for verb in ("plan", "inspect", "train"))])
    write_atomically(path, render_commented(recipe, header))


def _init_for(path: Path, preset: str | None, data: str, base: str | None, show: Show) -> dict[str, Any]:
    from tunesmith.verbs.fit import fit
    from tunesmith.verbs.lengths import look_at_base, unseen_base

    preset = preset or (_PRESET_FOR_EMBEDDED if base == embedded.BASE_NAME else _PRESET_FOR_DATA)
    model = (beginning := parse_recipe(preset_text(preset), name=preset)).model
    fitted = fit(_reachable(data, path), beginning,
                 look_at_base(_reachable(base, path), show) if base is not None
                 else unseen_base(model.base, model.quantization), show)
    result = {"recipe": str(path), "preset": preset, **_result(fitted)}
    if base is None:
        result["notes"].append(f"No base was named, so model.base is the preset's, {model.base}. "
                               "For another: --base BASE")
    _write(path, fitted.recipe, _comment(data, result))
    return result


def _reachable(name: str, recipe: Path) -> str:
    """A file or folder as the recipe names it: absolute where the recipe is not in the current folder."""
    there = expanded(name)
    is_here = there.exists() or glob.has_magic(name)
    return str(there.absolute()) if is_here and recipe.parent.absolute() != Path.cwd() else name


def _result(fitted: Fit) -> dict[str, Any]:
    shape, train, data = fitted.scan.shape, fitted.recipe.train, fitted.recipe.data
    learnt = fitted.scan.rows - (0 if fitted.scan.held_out else fitted.held_out)
    return {
        "shape": shape.name, "why": shape.why, "unused": list(shape.unused),
        "columns": {part: column.name for part, column in shape.parts.items()},
        "base": fitted.recipe.model.base, "chat": fitted.chat,
        "rows": fitted.scan.rows, "rows_counted": fitted.scan.whole, "held_out": fitted.held_out,
        "epochs": train.num_epochs, "batch_size": train.batch_size,
        "validation": data.validation,
        "steps": -(-learnt // train.batch_size) * int(train.num_epochs or 1),
        "lengths": {name: getattr(fitted.lengths, name)
                    for name in ("half", "most", "longest", "measured")},
        "max_length": data.max_length, "notes": list(fitted.notes)}


def _comment(data: str, result: dict[str, Any]) -> list[str]:
    """What stands above the recipe: what was taken for what, and why."""
    rows = f"{result['rows']:,}" if result["rows_counted"] else f"more than {result['rows']:,}"
    unused = [on_one_line(name, 60) for name in result["unused"]]
    return [f"Made for {on_one_line(data)}: {rows} rows, taken for {result['shape']}, because "
            f"{on_one_line(result['why'], 400)}.",
            *([f"Not used: {', '.join(unused)}."] if unused else []), _lengths_sentence(result["lengths"]),
            *(on_one_line(note, 500) for note in result["notes"])]


def _lengths_sentence(lengths: dict[str, Any]) -> str:
    about = "" if lengths["measured"] else "about "
    return (f"Half of the rows have at most {about}{lengths['half']:,} tokens, "
            f"95% {about}{lengths['most']:,}, the longest {about}{lengths['longest']:,}"
            + ("." if lengths["measured"] else ": estimated, as the base's tokenizer is not here."))
