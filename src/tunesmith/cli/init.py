"""`tunesmith init`."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.common import Json, Quiet, run_verb


def init(
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="Where to write it.")] = "recipe.yaml",
    preset: Annotated[str, typer.Option(
        metavar="NAME",
        help="bloom-7b1-quotes | bloom-7b1-quotes-notebook | chat | demo")] = "bloom-7b1-quotes",
    as_json: Json = False, quiet: Quiet = False) -> None:
    """Write a commented recipe."""
    import tunesmith

    run_verb(lambda terminal: tunesmith.init(path, preset=preset),
             lambda result: f"Wrote {result['recipe']}. Put your base and data in it, then: "
                            f"tunesmith plan {result['recipe']}", as_json=as_json, quiet=quiet)
