"""`tunesmith merge`."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.common import Json, Quiet, Threads, run_verb
from tunesmith.cli.process import use_threads
from tunesmith.cli.texts import merge_text
from tunesmith.model.quantization import AS_THEY_ARE, WAYS


def merge(adapter: Annotated[str,
                             typer.Argument(metavar="ADAPTER", help="A run, an adapter folder or a Hub id.")],
          out: Annotated[str,
                         typer.Argument(metavar="OUT", help="The model's folder, which does not exist yet.")],
          recipe: Annotated[str | None,
                            typer.Option(metavar="RECIPE", help="Names held-out rows to measure on.")] = None,
          base: Annotated[str | None, typer.Option(metavar="BASE", help="Another place of the base.")] = None,
          quantization: Annotated[str | None, typer.Option(
              metavar="KIND",
              help=f"What it was trained on: {' | '.join(WAYS)}; by default as the adapter's "
                   f"metadata (tunesmith.json) says, else {AS_THEY_ARE}")] = None,
          device: Annotated[str, typer.Option(metavar="DEVICE", help="auto | cpu | cuda | cuda:N")] = "auto",
          threads: Threads = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Base and adapter in one model, checked against the live adapter."""
    import tunesmith

    use_threads(threads)

    run_verb(lambda terminal: tunesmith.merge(adapter, out, recipe=recipe, base=base,
                                              quantization=quantization, device=device, show=terminal),
             merge_text, as_json=as_json, quiet=quiet)
