"""What a verb tells while it works; the command line prints it, the Python API is silent by default."""

from __future__ import annotations

from typing import Any, Protocol


class Show(Protocol):
    """Receives what happens, as it happens."""

    def stage(self, text: str) -> None:
        """A step of the work begins ("loading the base")."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know ("3 rows truncated")."""
        ...

    def facts(self, facts: dict[str, str]) -> None:
        """What is about to be run: name to value, in order."""
        ...

    def step(self, record: dict[str, Any], total_steps: int) -> None:
        """One optimiser step is done; the record is the line of metrics.jsonl."""
        ...

    def progress(self, what: str, done: int, whole: int) -> None:
        """Part of something is done [bytes]."""
        ...


class Silent:
    """Tells nothing."""

    def stage(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def facts(self, facts: dict[str, str]) -> None:
        """Nothing."""

    def step(self, record: dict[str, Any], total_steps: int) -> None:
        """Nothing."""

    def progress(self, what: str, done: int, whole: int) -> None:
        """Nothing."""
