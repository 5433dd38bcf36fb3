"""`tunesmith plan`."""

from __future__ import annotations

from tunesmith.cli.common import Json, Quiet, RecipePath, Set, run_verb
from tunesmith.cli.texts import plan_text


def plan(recipe: RecipePath, overrides: Set = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Trainable and total parameters, before anything is loaded."""
    import tunesmith

    run_verb(lambda terminal: tunesmith.plan(recipe, overrides=overrides or ()), plan_text, as_json=as_json,
             quiet=quiet)
