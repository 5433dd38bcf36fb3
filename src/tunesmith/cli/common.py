"""What every verb shares: --json and --quiet, how errors end the command, how progress is shown."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tunesmith.cli.facts import run_facts
from tunesmith.cli.process import have_a_home, hide_hub_progress, take_any_text
from tunesmith.errors import EnvironmentFault, Interrupted, OutOfMemory, TunesmithError
from tunesmith.interrupts import outside_imports
from tunesmith.model.quantization import smallest
from tunesmith.os_errors import explained_os_error
from tunesmith.visible import json_visible, on_one_line, visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

    from tunesmith.verbs.show import RunFacts

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no messages; the result alone.")]
Set = Annotated[list[str] | None,
                typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting of the recipe.")]
Threads = Annotated[int | None,
                    typer.Option("--threads", metavar="N", min=1, help="CPU threads; by default one a core.")]
RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file.")]


class Terminal:
    """Progress and messages on stderr: live on a terminal, plain lines elsewhere, nothing with --quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._console: Console | None = None
        self._progress: Progress | None = None
        self._status: Any = None
        self._seconds: list[float] = []
        self._last_line = 0.0

    @property
    def console(self) -> Console:
        """stderr, made when first needed: rich is not imported for --help."""
        if self._console is None:
            from rich.console import Console

            # stderr is None where whoever started us had closed it.
            stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            self._console = Console(file=stderr, quiet=self.quiet, highlight=False, soft_wrap=True)
        return self._console

    def stage(self, text: str) -> None:
        """A passing line while something takes time."""
        from rich.text import Text

        self._end_progress()
        if self.console.is_terminal and not self.quiet:
            if self._status is None:
                self._status = self.console.status("")
                self._status.start()
            self._status.update(Text(f"{on_one_line(text)} ..."))

    def note(self, text: str) -> None:
        """A line that stays."""
        self._print(visible(text))

    def _print(self, text: str) -> None:
        """A line on stderr; one that is full or gone costs the line, not the run."""
        with contextlib.suppress(OSError, ValueError):
            self.console.print(text, markup=False)

    def facts(self, facts: RunFacts) -> None:
        """Names and values, aligned."""
        self._end_status()
        named = run_facts(facts)
        width = max(map(len, named))
        for name, value in named.items():
            self._print(f"  {name:<{width}}  {on_one_line(value, 1000)}")

    def step(self, record: dict[str, Any], total_steps: int) -> None:
        """The live line: step, loss, tokens a second, time left."""
        if self.quiet:
            return
        self._end_status()
        self._seconds = [*self._seconds[-49:], record["seconds"]]
        seconds_left = (total_steps - record["step"]) * sum(self._seconds) / len(self._seconds)
        text = (f"{record['step']}/{total_steps}  loss {record['loss']:.3f}  "
                f"{record['tokens_per_second']:,.0f} tok/s  "
                f"{int(seconds_left // 60)}:{int(seconds_left % 60):02d} left")
        if not self.console.is_terminal:
            if record["step"] in (1, total_steps) or time.monotonic() - self._last_line > 10:
                self._last_line = time.monotonic()
                self._print(f"  step {text}")
            return
        if self._progress is None:
            from rich.progress import BarColumn, Progress, TextColumn

            self._progress = Progress(TextColumn("  training"), BarColumn(bar_width=30),
                                      TextColumn("{task.fields[text]}"), console=self.console)
            self._progress.start()
            self._progress.add_task("", total=total_steps, text="")
        self._progress.update(self._progress.task_ids[0], completed=record["step"], text=text)

    def progress(self, what: str, done: int, whole: int, unit: str = "bytes") -> None:
        """A bar, on a terminal; elsewhere its end alone is not worth a line."""
        if self.quiet or not self.console.is_terminal:
            return
        if not whole:
            self.stage(f"{what}: {done:,} {unit}")
            return
        if self._progress is None:
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            self._end_status()
            self._progress = Progress(TextColumn(f"  {on_one_line(what)}", markup=False),
                                      BarColumn(bar_width=30),
                                      DownloadColumn() if unit == "bytes" else MofNCompleteColumn(),
                                      TimeRemainingColumn(),
                                      console=self.console)
            self._progress.start()
            self._progress.add_task("", total=whole)
        self._progress.update(self._progress.task_ids[0], completed=done, total=whole)
        if done >= whole:
            self._end_progress()

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._end_status()
        self._end_progress()

    def _end_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _end_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def run_verb(call: Callable[[Terminal], dict[str, Any]],
             to_text: Callable[[dict[str, Any]], str | RenderableType], *, as_json: bool, quiet: bool,
             exit_code: Callable[[dict[str, Any]], int] = lambda result: 0, raw: bool = False) -> None:
    """Call a verb, print what it returns (as JSON, or as `to_text` words it), and end with its exit code.

    An expected failure ends with its own code and no traceback; anything else is a bug of ours and shows one.
    raw: what `to_text` gives is an answer, see `_out`.
    """
    take_any_text()
    have_a_home()
    terminal, interrupt = Terminal(quiet), _Interrupt()
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        hide_hub_progress()
    try:
        result = call(terminal)
        terminal.close()
        _out(_json(result) if as_json else to_text(result), raw=raw)
    except TunesmithError as error:
        _fail(terminal, error, as_json)
    except MemoryError:
        _fail(terminal, OutOfMemory("this machine's memory is full", "Take a smaller base or shorter rows."),
              as_json)
    except KeyboardInterrupt:
        _fail(terminal, interrupt.error, as_json)
    except BrokenPipeError:
        raise typer.Exit(0) from None
    except Exception as error:  # the last resort of the command line
        _fail(terminal, interrupt.error if interrupt.came else _expected(error) or _bug(terminal, error),
              as_json)
    raise typer.Exit(exit_code(result))


def _json(value: dict[str, Any]) -> str:
    """As JSON that every terminal and every reader takes."""
    plain = "utf" not in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    return json_visible(json.dumps(value, ensure_ascii=plain))


def _out(text: str | RenderableType, *, raw: bool = False) -> None:
    """Print the result. raw: an answer, which goes as it is unless a terminal would act on it."""
    if sys.stdout is None:  # closed by whoever started us
        return
    try:
        if not isinstance(text, str):
            from rich.console import Console

            Console(highlight=False, markup=False, emoji=False).print(text)
            return
        print(text if raw and not sys.stdout.isatty() else visible(text), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise explained_os_error(error, "the output (stdout)") or error from None


class _Interrupt:
    """Remembers that Ctrl-C came: libraries turn the exception that it raises into their own errors."""

    error = Interrupted(signal.SIGINT, "Stopped.", "Run the same command to begin again.")

    def __init__(self) -> None:
        self.came = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, outside_imports(self._come))

    def _come(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


def _fail(terminal: Terminal, error: TunesmithError, as_json: bool) -> NoReturn:
    # a stderr that is closed or full changes nothing of the exit code
    with contextlib.suppress(OSError, ValueError):
        terminal.close()
        if sys.stderr is not None:
            print(visible(str(error)), file=sys.stderr, flush=True)
    if as_json:
        report = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
        with contextlib.suppress(OSError, ValueError):
            _out(_json(report))
    raise typer.Exit(error.exit_code) from None


def _expected(error: Exception) -> TunesmithError | None:
    """The machine's own failures, wherever they arise: memory, disk, permissions. None for anything else."""
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return OutOfMemory("memory ran out", f"Quantise the base further ({smallest()}), shorten the rows, "
                           "or take a smaller base.")
    if isinstance(error, OSError) and error.errno is not None:
        what = str(error.filename) if error.filename is not None else "a file"
        return explained_os_error(error, what) or EnvironmentFault(f"{what}: {error.strerror}")
    if ((isinstance(error, ImportError) and (missing := _missing_package(error)))
            or (missing := _broken_import(error))):
        return EnvironmentFault(missing, "Install it again: pip install --force-reinstall tunesmith "
                                "(tunesmith doctor says what else is missing)")
    return None


def _broken_import(error: Exception) -> str | None:
    """A package that raised while being imported: a library of its own is missing, or of another version."""
    entry, importing = error.__traceback__, None
    while entry is not None:
        name = str(entry.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        importing = importing or ("" if entry.tb_frame.f_code.co_filename.startswith("<frozen importlib")
                                  else None)
        if importing == "" and name not in ("tunesmith", "importlib", "_frozen_importlib",
                                            "_frozen_importlib_external", ""):
            importing = name
        entry = entry.tb_next
    if not importing or isinstance(error, TunesmithError):
        return None
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"the package {importing} is installed, but cannot be loaded: {reason}"


def _missing_package(error: ImportError) -> str | None:
    """What of another package is missing, or does not fit; None where the name is one of ours."""
    name = (error.name or "").partition(".")[0]
    if name == "tunesmith":
        return None
    if isinstance(error, ModuleNotFoundError) and name:
        return f"the package {name} is not installed"
    return f"a package that is installed cannot be loaded ({name or 'unknown'}): {str(error).splitlines()[0]}"


def _bug(terminal: Terminal, error: Exception) -> NoReturn:
    terminal.close()
    print(visible("".join(traceback.format_exception(error))), file=sys.stderr)
    print("\nThis is a bug of tunesmith. "
          "Please report it with the lines above and the output of `tunesmith doctor`.", file=sys.stderr)
    raise typer.Exit(1) from None


def program() -> str:
    """How this command is called from here: by its name if that is on the PATH, else by its path."""
    import shutil

    return "tunesmith" if shutil.which("tunesmith") or not sys.argv[0].endswith("tunesmith") else sys.argv[0]


def relative(path: str) -> str:
    """A path as short as it can be said from here."""
    from pathlib import Path

    try:
        current = Path.cwd()
    except OSError:  # it was removed
        return path
    return str(Path(path).relative_to(current)) if Path(path).is_relative_to(current) else path
