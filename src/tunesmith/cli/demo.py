"""`tunesmith demo`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tunesmith.cli.common import Json, Quiet, Terminal, Threads, run_verb
from tunesmith.cli.process import use_threads
from tunesmith.cli.texts import demo_text


def demo(run: Annotated[str, typer.Option("--run", metavar="DIR", help="The run folder.")] = "runs/demo",
         threads: Threads = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """The whole road on the embedded base: train, judge, before and after, report."""
    import tunesmith

    use_threads(threads)

    def call(terminal: Terminal) -> dict[str, Any]:
        terminal.note("\nTunesmith demo  ·  no network, no GPU needed\n")
        return tunesmith.demo(run=run, show=terminal)

    run_verb(call, demo_text, as_json=as_json, quiet=quiet)
