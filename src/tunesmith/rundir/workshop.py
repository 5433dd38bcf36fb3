"""A folder that is made beside its place and put there when it is whole; a signal or an error leaves
nothing.
"""

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
def workshop(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, empty, held by this process alone, and gone afterwards whatever
    happens.

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
                _tell_of(out, folder, error)
                raise


def _tell_of(out: Path, folder: Path, error: TunesmithError) -> None:
    """Put the place that the user named into an error, where it names the temporary folder, which is gone
    when it is read.
    """
    place = re.compile(re.escape(str(folder)) + r"(/\d+)?(?![\w-]|\.\w)")
    problem, hint = (place.sub(lambda found: str(out), text) for text in (error.problem, error.hint))
    error.reword(problem, hint=hint)


def _remove_empty(folders: list[Path]) -> None:
    """Innermost first; what holds something stays."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


class _Stopped(KeyboardInterrupt):
    """Of a class of its own: after a plain KeyboardInterrupt within an eval, Python ends as if by SIGINT,
    caught or not.
    """


@contextlib.contextmanager
def _signals_as_errors() -> Iterator[None]:
    """These signals end the block, so that what is temporary is removed.

    The signal's exception is no Exception, yet libraries turn even that into errors of their own, and Python
    drops it in a callback. So whatever ends the block after a signal is taken for its doing, and what was
    dropped is raised again. During an import nothing is raised until the import is done: a compiled module's
    initialisation may run Python from C++ that no exception may leave (torch's ends the process with SIGABRT
    there), and a half-imported module helps nobody.
    """
    came = 0
    imports_before = imports_under_way(sys._getframe())

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if number != signal.SIGALRM:
            came = number
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
        if imports_under_way(frame) <= imports_before:
            raise _Stopped

    def hide(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, _Stopped):
            tell(dropped)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    tell, sys.unraisablehook = sys.unraisablehook, hide
    old = {number: signal.signal(number, stop)
           for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)}
    try:
        yield
    except BaseException:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if came:
            raise Interrupted(came, "Stopped; nothing was written.",
                              "Run the same command to begin again.") from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in old.items():
            signal.signal(number, handler)
        sys.unraisablehook = tell


def put_in_place(folder: Path, out: Path) -> None:
    """Make a finished folder `out`, in one step. Raises DiskError, or UsageError when something was put there
    meanwhile.
    """
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
