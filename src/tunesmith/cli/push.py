"""`tunesmith push`."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.common import Json, Quiet, run_verb
from tunesmith.cli.texts import push_text


def push(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="A run, an adapter folder or a Hub id.")],
    repo: Annotated[str, typer.Argument(
        metavar="REPO", help="ORG/NAME on the Hub, or NAME in your own account.")],
    private: Annotated[bool, typer.Option(
        "--private", help="For you alone, as every new repository is.")] = False,
    public: Annotated[bool, typer.Option(
        "--public", help="For everyone; else an existing one stays as it is.")] = False,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the commit.")] = None,
    base: Annotated[str | None, typer.Option(
        metavar="ORG/NAME", help="The base's Hub id, where a folder was trained on.")] = None,
    license: Annotated[str | None, typer.Option(
        metavar="ID", help="Such as apache-2.0; by default the base's.")] = None,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Show the card and the files, and stay here.")] = False,
    as_json: Json = False, quiet: Quiet = False) -> None:
    """Publish an adapter on the Hub, in one commit, with a card written from its run."""
    import tunesmith

    if private and public:
        raise typer.BadParameter("--private and --public exclude each other")
    visibility = True if private else False if public else None
    run_verb(lambda terminal: tunesmith.push(adapter, repo, private=visibility, message=message, base=base,
                                             license=license, dry_run=dry_run, show=terminal),
             lambda result: push_text(result, dry_run=dry_run), as_json=as_json, quiet=quiet)
