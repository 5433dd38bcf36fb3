"""What train and evaluate need before weights are loaded: rows as tokens, the base's files, a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.data import Dataset, read_text, tokens_of
from tunesmith.data.making import Loader, Making
from tunesmith.data.remarks import remarks_on
from tunesmith.data.token_rows import largest_of, lengths_of
from tunesmith.data.tokenize import rules_of
from tunesmith.errors import RecipeError
from tunesmith.model.files import BaseFiles, locate_base, stop_ids
from tunesmith.recipe import Recipe
from tunesmith.verbs.audit import cheap_findings
from tunesmith.verbs.decide import Decisions
from tunesmith.verbs.show import Show

#: Of data that is read again for it, a training run looks at so many of the first rows.
_LOOKED_AT_ROWS = 2_000


@dataclass(frozen=True)
class Prepared:
    """The data and the base of a recipe, checked, no weights loaded.

    content_hash: of the rows as text. files, validation_files: those that the rows were read from.
    """

    decisions: Decisions
    content_hash: str
    data: Dataset
    base: BaseFiles
    tokenizer: Any
    files: list[str]
    validation_files: list[str]


def prepare(recipe: Recipe, decisions: Decisions, show: Show, *, training: bool = True,
            check: Callable[[], None] = lambda: None) -> Prepared:
    """Read the data, find the base, tokenize. training: without it only the validation set becomes tokens.
    check: called again and again while that takes long; may raise.

    Raises RecipeError, DataError, EnvironmentFault, NetworkError or IntegrityError.
    """
    show.stage("reading the data")
    text = read_text(recipe.data, show.note)
    base = locate_base(decisions.base, decisions.revision, show.note)
    from tunesmith.model.tokenizer import load_tokenizer, tokenizer_fingerprint

    tokenizer = load_tokenizer(base)
    show.stage("tokenizing")
    rules = rules_of(recipe.data, stop_ids(base, tokenizer))

    def progress(done: int, whole: int) -> None:
        check()
        show.progress("tokenizing", done, whole, unit="rows")

    making = Making(loader_of(base), tokenizer_fingerprint(base, tokenizer), show.note,
                    progress)
    data = tokens_of(text, tokenizer, rules, making, training=training)
    for line in remarks_on(recipe.data, text, data):
        show.note(line)
    if training:
        looked_at = text.beginning(_LOOKED_AT_ROWS)
        which = "" if looked_at is text else f"Among the first {_LOOKED_AT_ROWS:,} rows: "
        for line in cheap_findings(recipe, base, tokenizer, looked_at, data):
            show.note(which + line)
    _require_embedded(data, base, tokenizer)
    longest = max((rows[int(np.argmax(lengths_of(rows)))] for rows in (data.train, data.validation)
                   if len(rows)), key=lambda row: len(row.ids))
    if base.positions is not None and len(longest.ids) > base.positions:
        raise RecipeError(f"{longest.place} has {len(longest.ids)} tokens, "
                          f"the base has {base.positions} positions",
                          f"Set data.max_length to {base.positions}, and data.overlong to truncate or drop.",
                          setting="data.max_length")
    return Prepared(decisions, text.content_hash, data, base, tokenizer, text.files, text.validation_files)


def loader_of(base: BaseFiles) -> Loader:
    """What makes a base's tokenizer in another process."""
    return Loader("tunesmith.model.tokenizer", "load_tokenizer_in",
                  {"name": base.name, "folder": str(base.folder)})


def _require_embedded(data: Dataset, base: BaseFiles, tokenizer: Any) -> None:
    """Raise RecipeError where a row has a token that the base has no embedding for."""
    size = base.config.get("vocab_size")
    if not isinstance(size, int):
        return
    for rows in (data.train, data.validation):
        for number in np.flatnonzero(largest_of(rows) >= size)[:1].tolist():
            row = rows[number]
            token = max(row.ids)
            raise RecipeError(f"{row.place}: its token {token} ({tokenizer.convert_ids_to_tokens(token)!r}) "
                              f"is beyond the base's embedding of {size:,} tokens; the tokenizer has "
                              f"{len(tokenizer):,}",
                              "The tokenizer is another model's, or has tokens that were added later: take "
                              "the base's own.",
                              setting="model.base")
