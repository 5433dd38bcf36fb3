"""The data of a run: read and split as text (no model needed), then as tokens; what is dropped is counted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

from tunesmith.data.chat.answers import ChatRemarks
from tunesmith.data.examples import Example, ExampleMaker, Form
from tunesmith.data.sources import SourceSettings, open_source
from tunesmith.data.split import hold_out
from tunesmith.data.tokenize import Encoder, Rules, TokenRow
from tunesmith.errors import DataError
from tunesmith.hub.client import Tell, quiet


class DataSettings(SourceSettings, Protocol):
    """What is read of the recipe's data section."""

    @property
    def prompt(self) -> str: ...  # noqa: D102
    @property
    def completion(self) -> str | None: ...  # noqa: D102
    @property
    def messages(self) -> str | None: ...  # noqa: D102
    @property
    def tools(self) -> str | None: ...  # noqa: D102
    @property
    def chat(self) -> Any: ...  # noqa: D102


def form_of(settings: DataSettings) -> Form:
    """How a data section makes examples of rows."""
    chat = settings.chat.model_dump(exclude_none=True) if settings.chat is not None else None
    return Form(settings.prompt, settings.completion, settings.messages, settings.tools, chat)


@dataclass(frozen=True)
class TextSet:
    """Training and validation examples; `repeated` were dropped, as they stand in both sources.

    written: how columns that are no text were written, by column and form, with how many rows. files: those
    that the rows were read from, of data.source and of data.validation. skipped: rows left out under
    `data.bad_rows: skip`.
    """

    train: list[Example]
    validation: list[Example]
    repeated: int
    written: Mapping[tuple[str, str], int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    validation_files: list[str] = field(default_factory=list)
    skipped: int = 0

    @property
    def content_hash(self) -> str:
        """SHA-256 over the content of every example, in order."""
        digest = hashlib.sha256()
        for side in (self.train, self.validation):
            digest.update(str(len(side)).encode())
            for example in side:
                digest.update(example.content_hash.encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """The token rows of a run.

    counts: train rows, validation rows, those truncated, dropped for their length, dropped as repeated, and
    the tokens. remarks: what is to be said of conversations. special: rows whose text holds a special token's
    text, which was taken as text.
    """

    train: list[TokenRow]
    validation: list[TokenRow]
    counts: dict[str, int] = field(default_factory=dict)
    remarks: ChatRemarks = field(default_factory=ChatRemarks)
    special: int = 0

    @property
    def conversations(self) -> bool:
        """Whether the rows are conversations."""
        return bool(self.remarks.settings)


def read_text(settings: DataSettings, tell: Tell = quiet) -> TextSet:
    """Read the sources, fill the templates, hold rows out.

    Raises DataError (file, line, column), RecipeError (template) or NetworkError.
    """
    maker = ExampleMaker(form_of(settings))

    source = open_source(settings, "data.source", tell)
    all_examples = list(maker.make_all(source.rows(), source.skipped.reject))
    if not isinstance(settings.validation, str | list):
        train, validation = hold_out(all_examples, settings.validation)
        return TextSet(train, validation, 0, maker.written, source.files, skipped=source.skipped.count)
    held_out = open_source(settings, "data.validation", tell)
    validation = list(maker.make_all(held_out.rows(), held_out.skipped.reject))
    seen = {example.content_hash for example in validation}
    train = [example for example in all_examples if example.content_hash not in seen]
    if not train:
        raise DataError("every row also stands in data.validation, so none is left to learn from",
                        setting="data.source")
    return TextSet(train, validation, len(all_examples) - len(train), maker.written, source.files,
                   held_out.files, source.skipped.count + held_out.skipped.count)


def tokenize_text(text: TextSet, tokenizer: Any, rules: Rules, *, training: bool = True) -> Dataset:
    """Turn examples into token rows by the rules. training: without it only the validation set, for a judge.

    Raises DataError for an overlong row under `overlong: error`, a row with no token that bears loss, and
    when the rules leave no rows.
    """
    encoder = Encoder(tokenizer, rules)
    counts = {"truncated": 0, "dropped": 0, "repeated": text.repeated}
    train = _encode_all(text.train, encoder, counts) if training else []
    validation = _encode_all(text.validation, encoder, counts)
    if training and not train:
        raise DataError(f"all {len(text.train)} rows are longer than {rules.max_length} tokens",
                        "Raise data.max_length, or set data.overlong to truncate.", setting="data.max_length")
    if text.validation and not validation:
        raise DataError(f"all {len(text.validation)} held-out rows exceed {rules.max_length} tokens",
                        "Raise data.max_length, or set data.overlong to truncate.", setting="data.max_length")
    counts |= {"train": len(train), "validation": len(validation),
               "tokens": sum(len(row.ids) for row in train)}
    special = 0
    if not rules.special_tokens:
        looked_at = [*text.train, *text.validation] if training else text.validation
        special = sum(any(map(encoder.plain.holds_special, example.texts())) for example in looked_at)
    return Dataset(train, validation, counts, encoder.chat.remarks, special)


def _encode_all(examples: list[Example], encoder: Encoder, counts: dict[str, int]) -> list[TokenRow]:
    rules, rows = encoder.rules, []
    for row, overlong in chain.from_iterable(encoder.encode_all(examples)):
        if overlong and rules.overlong == "error":
            raise DataError(f"{row.place}: longer than data.max_length, {rules.max_length} tokens",
                            "Raise data.max_length, or set data.overlong to truncate, drop or split.")
        if overlong and rules.overlong == "drop":
            counts["dropped"] += 1
            continue
        counts["truncated"] += overlong and rules.overlong == "truncate"
        if not row.loss_tokens:
            reason = (f"its prompt alone fills data.max_length, {rules.max_length} tokens" if overlong
                      else "the completion is empty" if rules.loss_on == "completion"
                      else "it is empty or one token long")
            raise DataError(f"{row.place}: no token to learn from: {reason}",
                            "Remove the row" + (", or set data.overlong to drop." if overlong else "."))
        rows.append(row)
    return rows
