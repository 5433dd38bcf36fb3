"""What a verb tells while it works; the command line prints it, the Python API is silent by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class RunFacts:
    """A run as it is about to begin. kept: how many of the base's values are kept how. gpu: its name, None
    for a CPU with so many threads. targets: what the adapter's modules are called.
    """

    base: str
    base_parameters: int
    quantization: str
    kept: Mapping[str, int]
    train_rows: int
    validation_rows: int
    rank: int
    targets: tuple[str, ...]
    trainable_parameters: int
    engine: str
    dtype: str
    matmul: str
    gpu: str | None
    threads: int
    steps: int
    batch_size: int


class Show(Protocol):
    """Receives what happens, as it happens."""

    def stage(self, text: str) -> None:
        """A step of the work begins ("loading the base")."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know ("3 rows truncated")."""
        ...

    def facts(self, facts: RunFacts) -> None:
        """What is about to be run."""
        ...

    def step(self, record: dict[str, Any], total_steps: int) -> None:
        """One optimiser step is done; the record is the line of metrics.jsonl."""
        ...

    def progress(self, what: str, done: int, whole: int, unit: str = "bytes") -> None:
        """Part of something is done; whole: 0 where that is not known."""
        ...


class Silent:
    """Tells nothing."""

    def stage(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def facts(self, facts: RunFacts) -> None:
        """Nothing."""

    def step(self, record: dict[str, Any], total_steps: int) -> None:
        """Nothing."""

    def progress(self, what: str, done: int, whole: int, unit: str = "bytes") -> None:
        """Nothing."""
