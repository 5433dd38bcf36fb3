"""`tunesmith evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.common import Json, Quiet, Set, Threads, run_verb
from tunesmith.cli.process import use_threads
from tunesmith.cli.texts import evaluate_text
from tunesmith.model.quantization import WAYS


def evaluate(
    target: Annotated[str, typer.Argument(
        metavar="RUN-OR-ADAPTER", help="A run, or any PEFT LoRA adapter: a folder or a Hub id.")],
    recipe: Annotated[str | None, typer.Option(
        metavar="RECIPE", help="Names base and rows for an adapter that stands outside its run.")] = None,
    base: Annotated[str | None, typer.Option(
        metavar="BASE", help="Another place of the recipe's base.")] = None,
    quantization: Annotated[str | None, typer.Option(
        metavar="KIND", help=f"{' | '.join(WAYS)}; by default as the recipe says.")] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto | cpu | cuda | cuda:N")] = None,
    overrides: Set = None, threads: Threads = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Held-out loss, stop rate, samples, verdict against the bare base."""
    import tunesmith

    use_threads(threads)

    run_verb(lambda terminal: tunesmith.evaluate(target, recipe=recipe, base=base, quantization=quantization,
                                                 device=device, overrides=tuple(overrides or ()),
                                                 show=terminal),
             evaluate_text, as_json=as_json, quiet=quiet)
