"""One tree of errors: each says what is wrong and where, what to do next, and with which exit code the command ends."""

from __future__ import annotations


class TunesmithError(Exception):
    """An expected failure. The command line prints `message` and `hint`, never a traceback.

    message: what is wrong, and where (file, line, key, row).
    hint: what to do next; empty when the message says it all.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(TunesmithError):
    """The command was called in a way that it does not know."""

    exit_code = 2


class RecipeError(TunesmithError):
    """The recipe asks for something that does not exist or makes no sense."""

    exit_code = 3


class DataError(TunesmithError):
    """A row, a column or a file of the data cannot be used."""

    exit_code = 4


class EnvironmentFault(TunesmithError):
    """This machine lacks something: a GPU, a package, the right to write, a free run folder."""

    exit_code = 5


class OutOfMemory(TunesmithError):
    """The run does not fit in memory, even cut as small as it can be."""

    exit_code = 6


class DiskError(TunesmithError):
    """The disk is full or cannot be written; the last good checkpoint is kept."""

    exit_code = 7


class NetworkError(TunesmithError):
    """The Hub or the network did not answer."""

    exit_code = 8


class IntegrityError(TunesmithError):
    """A file is not what was written, or an adapter does not belong to the base."""

    exit_code = 9


class DivergedError(TunesmithError):
    """The loss became NaN or infinite; nothing after that step would mean anything."""

    exit_code = 3


class Interrupted(TunesmithError):
    """A signal stopped the run; what could be saved was saved. Exit code 128 + the signal's number."""

    def __init__(self, signal_number: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
