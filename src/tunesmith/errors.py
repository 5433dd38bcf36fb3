"""One tree of errors: each says what is wrong and where, what to do next, and the command's exit code."""

from __future__ import annotations

import copyreg
from enum import Enum
from typing import Any, Self


class Kind(Enum):
    """What callers tell apart. They ask for the kind of an error, never for the wording of its message."""

    NO_SUCH_REPOSITORY = "the Hub shows no such repository"
    NO_SUCH_REVISION = "the Hub has no such revision, or a revision stands where none can"
    UNREACHABLE = "the Hub cannot be reached, does not answer, or asks to come again later"
    OFFLINE = "the user asked for no network"
    DISK_FULL = "there is no space left, or no more may be taken"


class TunesmithError(Exception):
    """An expected failure. The command line prints `message` and `hint`, never a traceback.

    problem: what is wrong, and where (file, line, row). hint: what to do next; empty when the problem says it
    all. setting: the key of the recipe, or the option, that it is about, such as `model.base`; it begins the
    message. kind: what callers tell apart; None for an error that nobody does anything about.
    """

    exit_code = 1

    def __init__(self, problem: str, hint: str = "", *, setting: str = "", kind: Kind | None = None) -> None:
        self.problem, self.hint, self.setting, self.kind = problem, hint, setting, kind
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """What is wrong, and where: the setting, then the problem."""
        return f"{self.setting}: {self.problem}" if self.setting else self.problem

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which would call the class with the message alone."""
        newobj: Any = copyreg.__newobj__  # type: ignore[attr-defined]  # typeshed lacks it
        return newobj, (type(self), *self.args), self.__dict__

    def reword(self, problem: str | None = None, *, hint: str | None = None,
               setting: str | None = None) -> Self:
        """This same error, reworded in place by a caller who knows more; class, exit code and kind stay."""
        self.problem = self.problem if problem is None else problem
        self.hint = self.hint if hint is None else hint
        self.setting = self.setting if setting is None else setting
        self.args = (self.message,)
        return self

    def at(self, place: str) -> Self:
        """This same error, changed in place, with a file, a folder or the like before its message."""
        return self.reword(f"{place}: {self.message}", setting="")


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

    def __init__(self, signal_number: int, problem: str, hint: str = "") -> None:
        super().__init__(problem, hint)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
