"""The `tunesmith` command: one file per verb, gathered here."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from tunesmith.cli import (
    demo,
    doctor,
    evaluate,
    export,
    generate,
    init,
    inspect,
    merge,
    plan,
    pull,
    push,
    train,
    verify,
)
from tunesmith.cli.process import open_standard_streams

app = typer.Typer(
    name="tunesmith", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune a language model with LoRA on a frozen, quantised base, and see whether it helped.",
    epilog="Exit codes: 0 done, 1 a bug of ours, 2 usage, 3 recipe, 4 data, 5 environment, 6 memory, 7 disk, "
           "8 network, 9 integrity, 130/143 stopped by a signal after saving.")
for module in (demo, init, plan, inspect, train, evaluate, generate, merge, export, push, pull, verify,
               doctor):
    app.command()(getattr(module, module.__name__.rpartition(".")[2]))


def _print_version(requested: bool) -> None:
    if requested:
        from tunesmith import __version__

        print(f"tunesmith {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True,
                                                help="Print the version.")] = False) -> None:
    pass


def main() -> None:
    """The console script."""
    open_standard_streams()
    try:
        app()
    except OSError as error:  # of a help text; results are printed elsewhere
        if error.errno != errno.EPIPE:
            print(f"the output: {error.strerror}", file=sys.stderr)
            raise SystemExit(7) from None
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
