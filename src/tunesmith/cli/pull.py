"""`tunesmith pull`."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.common import Json, Quiet, run_verb
from tunesmith.cli.texts import pull_text


def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="ORG/NAME or ORG/NAME@REVISION on the Hub.")],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Where it goes.")],
    revision: Annotated[str | None, typer.Option(metavar="REV", help="A branch, tag or commit.")] = None,
    as_json: Json = False, quiet: Quiet = False) -> None:
    """Fetch an adapter from the Hub into a folder, checked."""
    import tunesmith

    run_verb(lambda terminal: tunesmith.pull(repo, folder, revision=revision, show=terminal), pull_text,
             as_json=as_json, quiet=quiet)
