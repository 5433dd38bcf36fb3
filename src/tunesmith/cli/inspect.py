"""`tunesmith inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.common import Json, Quiet, RecipePath, Set, run_verb
from tunesmith.cli.inspect_view import inspect_view

#: Rows that the terminal shows.
_SHOWN = 3


def inspect(
    recipe: RecipePath,
    html: Annotated[str | None, typer.Option(
        metavar="FILE", help="Write a page with hundreds of rows, token by token, to this file.")] = None,
    rows: Annotated[int | None, typer.Option(
        metavar="N", min=0,
        help="Show the first N rows token by token (with --json: none unless asked).")] = None,
    overrides: Set = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """The data as the model will see it, and what is wrong with it."""
    import tunesmith

    shown = rows if rows is not None else 0 if as_json else _SHOWN
    run_verb(lambda terminal: tunesmith.inspect(recipe, html=html, rows=shown,
                                                overrides=tuple(overrides or ()), show=terminal),
             inspect_view, as_json=as_json, quiet=quiet,
             exit_code=lambda result: 4
             if any(finding["severity"] == "error" for finding in result["findings"])
             else 0)
