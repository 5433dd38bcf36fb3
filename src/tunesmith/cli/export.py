"""`tunesmith export`."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.common import Json, Quiet, Threads, run_verb
from tunesmith.cli.process import use_threads
from tunesmith.cli.texts import export_text


def export(
    adapter: Annotated[str, typer.Argument(
        metavar="ADAPTER", help="A run, an adapter, a Hub id or a merged model.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A folder that does not exist yet.")],
    format: Annotated[str, typer.Option(metavar="KIND", help="gguf")] = "gguf",
    what: Annotated[str, typer.Option(
        metavar="KIND", help="model (merged, ready to run) | adapter (the LoRA alone)")] = "model",
    outtype: Annotated[str, typer.Option(metavar="KIND", help="f16 | q8_0, of the model's weights")] = "f16",
    recipe: Annotated[str | None, typer.Option(
        metavar="RECIPE", help="Names held-out rows to measure on.")] = None,
    base: Annotated[str | None, typer.Option(metavar="BASE", help="Another place of the base.")] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto | cpu | cuda | cuda:N")] = "auto",
    threads: Threads = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """GGUF files for llama.cpp, and a Modelfile for Ollama."""
    import tunesmith

    use_threads(threads)

    run_verb(lambda terminal: tunesmith.export(adapter, out, format=format, what=what, outtype=outtype,
                                               recipe=recipe, base=base, device=device, show=terminal),
             export_text, as_json=as_json, quiet=quiet)
