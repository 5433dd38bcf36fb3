"""`tunesmith verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.common import Json, Quiet, run_verb
from tunesmith.cli.texts import verify_text
from tunesmith.errors import IntegrityError


def verify(target: Annotated[str, typer.Argument(metavar="RUN-OR-ADAPTER",
                                               help="A run, a checkpoint, an adapter folder or a Hub id.")],
           as_json: Json = False, quiet: Quiet = False) -> None:
    """Re-hash everything and say what is damaged."""
    import tunesmith

    run_verb(lambda terminal: tunesmith.verify(target, show=terminal), verify_text, as_json=as_json,
             quiet=quiet, exit_code=lambda result: 0 if result["whole"] else IntegrityError.exit_code)
