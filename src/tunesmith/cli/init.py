"""`tunesmith init`."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import typer

from tunesmith.cli.common import Json, Quiet, program, run_verb
from tunesmith.visible import on_one_line


def init(
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="Where to write it.")] = "recipe.yaml",
    preset: Annotated[str | None, typer.Option(
        metavar="NAME", show_default=False,
        help="bloom-7b1-quotes (the default) | bloom-7b1-quotes-notebook | chat (the default with --data) | "
             "demo")] = None,
    data: Annotated[str | None, typer.Option(
        metavar="FILE-OR-ID", show_default=False,
        help="Look at this file, folder or data set of the Hub, and write a recipe that fits it.")] = None,
    base: Annotated[str | None, typer.Option(
        metavar="BASE", show_default=False, help="The base model: a Hub id or a local folder.")] = None,
    as_json: Json = False, quiet: Quiet = False) -> None:
    """Write a commented recipe, with --data one that fits that file."""
    import tunesmith

    run_verb(lambda terminal: tunesmith.init(path, preset=preset, data=data, base=base, show=terminal),
             init_text, as_json=as_json, quiet=quiet)


def init_text(result: dict[str, Any]) -> str:
    """What was written, and the next command."""
    recipe = shlex.quote(result["recipe"])
    if "shape" not in result:
        return f"Wrote {result['recipe']}. Put your base and data in it, then: {program()} plan {recipe}"
    facts = {
        "rows": _rows(result),
        "taken for": f"{result['shape']}: {result['why']}",
        "columns": ", ".join(f"{name} ({part})" for part, name in result["columns"].items()),
        "not used": ", ".join(result["unused"]) or "-",
        "base": f"{result['base']}, "
                + ("through its chat template" if result["chat"] else "as plain text"),
        "tokens": _tokens(result),
        "training": _training(result),
    }
    width = max(map(len, facts))
    commands = [f"{program()} {verb} {recipe}" for verb in ("inspect", "train")]
    return "\n".join([f"Wrote {result['recipe']}.", "",
                      *(f"  {name:<{width}}  {on_one_line(value, 400)}" for name, value in facts.items()), "",
                      *(f"  {note}" for note in result["notes"]), *([""] if result["notes"] else []),
                      f"  Next: {commands[0]}    then  {commands[1]}"])


def _rows(result: dict[str, Any]) -> str:
    counted = f"{result['rows']:,}" if result["rows_counted"] else f"more than {result['rows']:,}"
    if isinstance(result["validation"], str):
        split = result["validation"].removeprefix("split:")
        return f"{counted} to learn from · {result['held_out']:,} of the split {split} held out"
    return f"{counted} · {result['held_out']:,} of them held out" if result["held_out"] else counted


def _training(result: dict[str, Any]) -> str:
    epochs, least = result["epochs"], "" if result["rows_counted"] else "at least "
    return (f"{epochs:g} epoch{'s' if epochs > 1 else ''}, {least}{result['steps']:,} steps of "
            f"{result['batch_size']} rows")


def _tokens(result: dict[str, Any]) -> str:
    lengths = result["lengths"]
    about = "" if lengths["measured"] else "about "
    estimated = "" if lengths["measured"] else " (estimated: the base's tokenizer is not here)"
    return (f"{about}{lengths['half']:,} in the middle, {about}{lengths['longest']:,} in the longest row"
            f"{estimated}; max_length is {result['max_length']:,}")
