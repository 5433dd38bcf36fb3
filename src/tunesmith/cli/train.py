"""`tunesmith train`."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.common import Json, Quiet, RecipePath, Set, Threads, run_verb
from tunesmith.cli.process import use_threads
from tunesmith.cli.texts import train_text


def train(recipe: RecipePath,
          run: Annotated[str | None, typer.Option("--run", metavar="DIR",
                                                  help="The run folder; runs/NAME by default.")] = None,
          overrides: Set = None, threads: Threads = None, as_json: Json = False,
          quiet: Quiet = False) -> None:
    """Train; the same command again resumes."""
    import tunesmith

    use_threads(threads)

    run_verb(lambda terminal: tunesmith.train(recipe, run=run, overrides=overrides or (), show=terminal),
             train_text, as_json=as_json, quiet=quiet)
