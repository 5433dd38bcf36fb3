"""A folder made beside its place and put there when it is whole; a signal or an error leaves nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tunesmith.errors import EnvironmentFault, Interrupted, TunesmithError, UsageError
from tunesmith.interrupts import imports_under_way
from tunesmith.rundir.files import TEMPORARY_PREFIX, disk_errors, sync_folder

#: How long after a signal its exception is raised once more [s].
_AGAIN_S = 0.2


@contextlib.contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, empty, held by this process alone, and gone afterwards in any case.

    Its name depends on `out` alone, so that the next command removes what a killed one left. Raises
    DiskError, EnvironmentFault when another process is making `out`, Interrupted on SIGINT, SIGTERM or
    SIGHUP.
    """
    folder = out.with_name(TEMPORARY_PREFIX + out.name)
    missing = [parent for parent in out.parents if not parent.exists()]
    with contextlib.ExitStack() as undo:
        undo.callback(_remove_empty, missing)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock = os.open(folder, os.O_RDONLY)
            except OSError:
                _remove_empty([folder])
                raise
        undo.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not folder.exists():  # whoever held it has just removed it
                raise BlockingIOError
        except BlockingIOError:
            raise EnvironmentFault(f"{out}: another process is writing it",
                                   "Wait for it, or choose another folder.") from None
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        with _signals_as_errors(), disk_errors(out):
            for leftover in folder.iterdir():
                shutil.rmtree(leftover)
            try:
                yield folder
            except TunesmithError as error:
                _name_the_place(out, folder, error)
                raise


def _name_the_place(out: Path, folder: Path, error: TunesmithError) -> None:
    """Put the place that the user named into an error that names the temporary folder, by then gone."""
    place = re.compile(re.escape(str(folder)) + r"(/\d+)?(?![\w-]|\.\w)")
    problem, hint = (place.sub(lambda match: str(out), text) for text in (error.problem, error.hint))
    error.reword(problem, hint=hint)


def _remove_empty(folders: list[Path]) -> None:
    """Innermost first; what holds something stays."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


class _Stopped(KeyboardInterrupt):
    """A class of its own: after KeyboardInterrupt in an eval, caught or not, Python ends as if by SIGINT."""


@contextlib.contextmanager
def _signals_as_errors() -> Iterator[None]:
    """These signals end the block, so that what is temporary is removed.

    The signal's exception is no Exception, yet libraries turn even that into errors of their own, and Python
    drops it in a callback. So whatever ends the block after a signal is taken for its doing, and what was
    dropped is raised again. During an import nothing is raised until the import is done: a compiled module's
    initialisation may run Python from C++ that no exception may leave (torch's ends the process with SIGABRT
    there), and a half-imported module helps nobody.
    """
    signal_number = 0
    imports_before = imports_under_way(sys._getframe())

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal signal_number
        if number != signal.SIGALRM:
            signal_number = number
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
        if imports_under_way(frame) <= imports_before:
            raise _Stopped

    def hide(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, _Stopped):
            previous_hook(dropped)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_hook, sys.unraisablehook = sys.unraisablehook, hide
    previous_handlers = {number: signal.signal(number, stop)
                         for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)}
    try:
        yield
    except BaseException:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if signal_number:
            raise Interrupted(signal_number, "Stopped; nothing was written.",
                              "Run the same command to begin again.") from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
        sys.unraisablehook = previous_hook


def put_in_place(folder: Path, out: Path) -> None:
    """Make a finished folder `out`, in one step. Raises DiskError, UsageError (something is there by now)."""
    with disk_errors(out):
        sync_folder(folder)
        try:
            os.rename(folder, out)  # onto nothing, or onto an empty folder
        except OSError:
            if not out.is_dir() or not any(out.iterdir()):
                raise
            raise UsageError(f"{out}: something was put there meanwhile",
                             "Choose another folder.") from None
        try:
            sync_folder(out.parent)
        except OSError:  # what fails leaves nothing
            os.rename(out, folder)
            raise
