"""Reads a run's data: as text (no model needed), split, then as tokens; what is dropped is counted.

A data set that fits is kept in memory. Of a larger one the texts are read again whenever they are asked for,
and the tokens stand in a file: see `large`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.data.chat.remarks import ChatRemarks
from tunesmith.data.examples import Example, ExampleMaker
from tunesmith.data.large_text import LargeText, all_repeated
from tunesmith.data.making import Making
from tunesmith.data.sets import Dataset, Texts, TextSet, form_of
from tunesmith.data.sources import Source, open_source
from tunesmith.data.sources.bad_rows import BadRows
from tunesmith.data.sources.splits import NoSuchSplit
from tunesmith.data.split import hold_out
from tunesmith.data.tokenize import Encoder, Rules, TokenRow
from tunesmith.data.tokenized import none_left, tokenized
from tunesmith.hub.client import Tell, quiet
from tunesmith.recipe.schema import DataSection

#: A source with more rows, or with more text, is large.
IN_MEMORY_ROWS, _IN_MEMORY_CHARACTERS = 20_000, 256 << 20


def read_text(settings: DataSection, tell: Tell = quiet) -> Texts:
    """Read the sources, fill the templates, hold rows out.

    Raises DataError (file, line, column), RecipeError (template) or NetworkError.
    """
    maker = ExampleMaker(form_of(settings))
    source = open_source(settings, "data.source", tell)
    all_examples = _in_memory(maker.make_all(source.rows(), source.skipped.reject))
    if not isinstance(settings.validation, str | list):
        if all_examples is None:
            return LargeText(settings, (source,))
        train, validation = hold_out(all_examples, settings.validation)
        return TextSet(train, validation, 0, maker.written, source.files, skipped=source.skipped.count,
                       skipped_first=source.skipped.first)
    try:
        held_out = open_source(settings, "data.validation", tell)
    except NoSuchSplit as error:  # `split:NAME`
        raise error.reword(setting="data.validation") from None
    held_out_examples = _in_memory(maker.make_all(held_out.rows(), held_out.skipped.reject))
    if all_examples is None or held_out_examples is None:
        return LargeText(settings, (source, held_out))
    return _without_repeated(all_examples, held_out_examples, maker, source, held_out)


def _without_repeated(examples: list[Example], validation: list[Example], maker: ExampleMaker,
                      source: Source, held_out: Source) -> TextSet:
    seen = {example.content_hash for example in validation}
    train = [example for example in examples if example.content_hash not in seen]
    if not train:
        raise all_repeated()
    return TextSet(train, validation, len(examples) - len(train), maker.written, source.files, held_out.files,
                   source.skipped.count + held_out.skipped.count,
                   [*source.skipped.first, *held_out.skipped.first])


def _in_memory(examples: Iterator[Example]) -> list[Example] | None:
    """All examples; None where they are too many, or too long."""
    kept: list[Example] = []
    characters = 0
    for example in examples:
        kept.append(example)
        characters += sum(map(len, example.texts()))
        if len(kept) > IN_MEMORY_ROWS or characters > _IN_MEMORY_CHARACTERS:
            return None
    return kept


def tokens_of(text: Texts, tokenizer: Any, rules: Rules, making: Making, *, training: bool = True) -> Dataset:
    """Turn texts into token rows; those of large ones on all cores, or from the cache. As `tokenize_text`.

    making: used for large texts alone. Raises DataError where too many rows are skipped (`data.bad_rows`).
    """
    if not isinstance(text, LargeText):
        data = tokenize_text(text, tokenizer, rules, training=training)
    else:
        from tunesmith.data.large import large_dataset

        data = large_dataset(text, rules, making, training=training)
    refused = data.remarks.refused
    skipped = BadRows(True, text.skipped + sum(refused.values()), [*text.skipped_first, *refused])
    skipped.require_few(len(data.train) + len(data.validation))
    return data


def tokenize_text(text: Texts, tokenizer: Any, rules: Rules, *, training: bool = True) -> Dataset:
    """Turn examples into token rows by the rules, in memory. training: without it only the validation set,
    for a judge.

    Raises DataError for an overlong row under `overlong: error`, a row with no token that bears loss, and
    when the rules leave no rows.
    """
    encoder, remarks = Encoder(tokenizer, rules), ChatRemarks()
    counts = {"truncated": 0, "dropped": 0, "repeated": text.repeated, "special": 0}
    train = _encode_all(text.train, encoder, counts, remarks) if training else []
    validation = _encode_all(text.validation, encoder, counts, remarks)
    if training and not train:
        raise none_left(len(text.train), rules, remarks.refused)
    if len(text.validation) and not validation:
        raise none_left(len(text.validation), rules, remarks.refused, held_out=True)
    special = counts.pop("special")
    counts |= {"train": len(train), "validation": len(validation),
               "tokens": sum(len(row.ids) for row in train)}
    return Dataset(train, validation, counts, remarks, special)


def _encode_all(examples: Sequence[Example], encoder: Encoder, counts: dict[str, int],
                remarks: ChatRemarks) -> list[TokenRow]:
    rows: list[TokenRow] = []
    for made in tokenized(examples, encoder):
        rows += made.rows
        counts["truncated"] += made.truncated
        counts["dropped"] += made.dropped
        counts["special"] += made.special
        remarks.add(vars(made.remarks))
    return rows
