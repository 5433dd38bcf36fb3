"""A signal's exception never breaks into an import: it is raised when the import is done.

A compiled module's initialisation may run Python from C++ that no exception may leave (torch's ends the
process with SIGABRT there), a package may print an error of its own for it (the Hub's client does), and a
half-imported module helps nobody.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType

Handler = Callable[[int, FrameType | None], None]
#: How long until it is looked again whether an import still runs [s].
_AGAIN_S = 0.05
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"


def imports_under_way(frame: FrameType | None) -> int:
    """The number of frames of Python's import system from this one outwards."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename == _IMPORT_SYSTEM
        frame = frame.f_back
    return count


def outside_imports(handle: Handler) -> Handler:
    """A signal handler that calls `handle` at once, or when the import is done that the signal fell into.

    Imports that were under way when this was called do not count. Takes SIGALRM and the process's timer while
    it waits.
    """
    before = imports_under_way(sys._getframe())

    def handler(number: int, frame: FrameType | None) -> None:
        if imports_under_way(frame) <= before:
            handle(number, frame)
            return
        signal.signal(signal.SIGALRM, lambda _, later: handler(number, later))
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)

    return handler
