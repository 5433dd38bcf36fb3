"""`tunesmith generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.common import Json, Quiet, Threads, run_verb
from tunesmith.cli.process import use_threads
from tunesmith.model.quantization import AS_THEY_ARE, WAYS


def generate(adapter: Annotated[str, typer.Argument(metavar="ADAPTER",
                                                    help="A run, an adapter folder or a Hub id.")],
             prompt: Annotated[str, typer.Option(metavar="TEXT", help="The prompt, exactly as in training.")],
             max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Longest answer [tokens].")] = 64,
             base: Annotated[str | None,
                             typer.Option(metavar="BASE", help="Another place of the base.")] = None,
             quantization: Annotated[str | None, typer.Option(
                 metavar="KIND",
                 help=f"{' | '.join(WAYS)}; by default as the adapter's metadata (tunesmith.json) says, "
                      f"else {AS_THEY_ARE}.")] = None,
             device: Annotated[str,
                               typer.Option(metavar="DEVICE", help="auto | cpu | cuda | cuda:N")] = "auto",
             threads: Threads = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """One answer on stdout."""
    import tunesmith

    use_threads(threads)

    run_verb(lambda terminal: tunesmith.generate(adapter, prompt=prompt, max_new_tokens=max_new_tokens,
                                                 base=base, quantization=quantization, device=device,
                                                 show=terminal),
             lambda result: result["text"], raw=True, as_json=as_json, quiet=quiet)
