"""SIGINT and SIGTERM: the first asks for a stop at a good moment, the second leaves at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tunesmith.errors import Interrupted
from tunesmith.interrupts import outside_imports


class StopSignal:
    """Whether the user asked the run to stop. As a context manager it holds the two signals' handlers.

    Outside `deferred()` a signal raises Interrupted where it falls: nothing is lost there. Within, it only
    sets `number`, and the loop stops itself after saving.
    """

    def __init__(self, tell: Callable[[str], None] = lambda text: None) -> None:
        """tell: is told at once that a signal was seen, since a step may take long."""
        self._tell = tell
        self.number: int | None = None
        self._deferring = False
        self._before: dict[int, object] = {}
        self._hook_before: Callable[[Any], object] = sys.unraisablehook

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._hook_before, sys.unraisablehook = sys.unraisablehook, self._dropped
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, outside_imports(self._handle))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._before:
            sys.unraisablehook = self._hook_before

    def _dropped(self, unraisable: Any) -> None:
        """Python drops an exception that falls into a callback, with a traceback: `check` raises it again."""
        if not isinstance(unraisable.exc_value, Interrupted):
            self._hook_before(unraisable)

    def check(self) -> None:
        """Raise Interrupted where a signal came and its exception was dropped; called again and again in
        what takes long.
        """
        if self.number is not None and not self._deferring:
            raise _interrupted(self.number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        if self._deferring:
            self._tell("Stopping: this step is finished and saved first. Once more leaves at once, at the "
                       "last checkpoint.")
        else:
            raise _interrupted(number)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it, a signal waits for the loop to look at `number`."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False


def _interrupted(number: int) -> Interrupted:
    return Interrupted(number, "Stopped.", "Run the same command again: it goes on from the newest "
                       "checkpoint, or begins anew where there is none.")
