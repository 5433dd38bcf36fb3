"""The data of a run: read and split as text (no model needed), then as tokens; what is dropped is counted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Protocol

from tunesmith.data.sources import read_source
from tunesmith.data.split import hold_out
from tunesmith.data.template import Example, make_examples
from tunesmith.data.tokenize import Encoder, Rules, TokenRow
from tunesmith.errors import DataError
from tunesmith.hub.client import Tell, quiet


class DataSettings(Protocol):
    """What is read of the recipe's data section."""

    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def split(self) -> str: ...  # noqa: D102
    @property
    def prompt(self) -> str: ...  # noqa: D102
    @property
    def completion(self) -> str | None: ...  # noqa: D102
    @property
    def messages(self) -> str | None: ...  # noqa: D102
    @property
    def validation(self) -> float | int | str: ...  # noqa: D102


@dataclass(frozen=True)
class TextSet:
    """Training and validation examples; `repeated` were dropped, as they stand in both sources."""

    train: list[Example]
    validation: list[Example]
    repeated: int

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
    the tokens.
    """

    train: list[TokenRow]
    validation: list[TokenRow]
    counts: dict[str, int] = field(default_factory=dict)


def read_text(settings: DataSettings, tell: Tell = quiet) -> TextSet:
    """Read the sources, fill the templates, hold rows out.

    Raises DataError (file, line, column), RecipeError (template) or NetworkError.
    """
    def examples(source: str, key: str) -> list[Example]:
        rows = read_source(source, settings.split, key, tell)
        return make_examples(rows, prompt=settings.prompt, completion=settings.completion,
                             messages=settings.messages)

    all_examples = examples(settings.source, "data.source")
    if not isinstance(settings.validation, str):
        train, validation = hold_out(all_examples, settings.validation)
        return TextSet(train, validation, 0)
    validation = examples(settings.validation, "data.validation")
    seen = {example.content_hash for example in validation}
    train = [example for example in all_examples if example.content_hash not in seen]
    if not train:
        raise DataError("every row also stands in data.validation, so none is left to learn from",
                        setting="data.source")
    return TextSet(train, validation, len(all_examples) - len(train))


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
    return Dataset(train, validation, counts)


def _encode_all(examples: list[Example], encoder: Encoder, counts: dict[str, int]) -> list[TokenRow]:
    rules, rows = encoder.rules, []
    for row, overlong in encoder.encode_all(examples):
        if overlong and rules.overlong == "error":
            raise DataError(f"{row.place}: longer than data.max_length, {rules.max_length} tokens",
                            "Raise data.max_length, or set data.overlong to truncate or drop.")
        if overlong and rules.overlong == "drop":
            counts["dropped"] += 1
            continue
        counts["truncated"] += overlong
        if not row.loss_tokens:
            reason = (f"its prompt alone fills data.max_length, {rules.max_length} tokens" if overlong
                      else "the completion is empty" if rules.loss_on == "completion"
                      else "it is empty or one token long")
            raise DataError(f"{row.place}: no token to learn from: {reason}",
                            "Remove the row" + (", or set data.overlong to drop." if overlong else "."))
        rows.append(row)
    return rows
