"""What a run's data is: as text, then as tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tunesmith.data.chat.remarks import ChatRemarks
from tunesmith.data.examples import Example, Form
from tunesmith.data.tokenize import TokenRow
from tunesmith.recipe.schema import DataSection


def form_of(settings: DataSection) -> Form:
    """How a data section makes examples of rows."""
    chat = settings.chat.model_dump(exclude_none=True) if settings.chat is not None else None
    return Form(settings.prompt, settings.completion, settings.messages, settings.tools, chat)


class Texts(Protocol):
    """Training and validation examples, in memory (`TextSet`) or read again whenever they are asked for.

    repeated, written, files, validation_files, skipped, skipped_first: see `TextSet`.
    """

    @property
    def train(self) -> Sequence[Example]: ...  # noqa: D102
    @property
    def validation(self) -> Sequence[Example]: ...  # noqa: D102
    @property
    def repeated(self) -> int: ...  # noqa: D102
    @property
    def written(self) -> Mapping[tuple[str, str], int]: ...  # noqa: D102
    @property
    def files(self) -> list[str]: ...  # noqa: D102
    @property
    def validation_files(self) -> list[str]: ...  # noqa: D102
    @property
    def skipped(self) -> int: ...  # noqa: D102
    @property
    def skipped_first(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def content_hash(self) -> str: ...  # noqa: D102

    def beginning(self, most: int) -> TextSet:
        """Some of the first examples, in memory."""
        ...


@dataclass(frozen=True)
class TextSet:
    """Training and validation examples; `repeated` were dropped, as they stand in both sources.

    written: how columns that are no text were written, by column and form, with how many rows. files: those
    that the rows were read from, of data.source and of data.validation. skipped: rows left out under
    `data.bad_rows: skip`; skipped_first: what was wrong with the first of them, and where.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    repeated: int
    written: Mapping[tuple[str, str], int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    validation_files: list[str] = field(default_factory=list)
    skipped: int = 0
    skipped_first: Sequence[str] = ()

    @property
    def content_hash(self) -> str:
        """SHA-256 over the content of every example, in order."""
        digest = hashlib.sha256()
        for side in (self.train, self.validation):
            digest.update(str(len(side)).encode())
            for example in side:
                digest.update(example.content_hash.encode())
        return digest.hexdigest()

    def beginning(self, most: int) -> TextSet:
        """Some of the first examples, in memory."""
        return self


@dataclass(frozen=True)
class Dataset:
    """The token rows of a run.

    counts: train rows, validation rows, those truncated, dropped for their length, dropped as repeated, and
    the tokens. remarks: what is to be said of conversations. special: rows whose text holds a special token's
    text, which was taken as text.
    """

    train: Sequence[TokenRow]
    validation: Sequence[TokenRow]
    counts: dict[str, int] = field(default_factory=dict)
    remarks: ChatRemarks = field(default_factory=ChatRemarks)
    special: int = 0

    @property
    def conversations(self) -> bool:
        """Whether the rows are conversations."""
        return bool(self.remarks.settings)
