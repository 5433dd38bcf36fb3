"""What train and evaluate need before weights are loaded: rows as tokens, the base's files, a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.data import Dataset, read_text, tokenize_text
from tunesmith.data.tokenize import Rules
from tunesmith.errors import RecipeError
from tunesmith.model.files import BaseFiles, locate_base
from tunesmith.recipe import Recipe
from tunesmith.verbs.decide import Decisions
from tunesmith.verbs.show import Show


@dataclass(frozen=True)
class Prepared:
    """The data and the base of a recipe, checked, no weights loaded. content_hash: of the rows as text."""

    decisions: Decisions
    content_hash: str
    data: Dataset
    base: BaseFiles
    tokenizer: Any


def prepare(recipe: Recipe, decisions: Decisions, show: Show, *, training: bool = True) -> Prepared:
    """Read the data, find the base, tokenize. training: without it only the validation set becomes tokens.

    Raises RecipeError, DataError, EnvironmentFault, NetworkError or IntegrityError.
    """
    show.stage("reading the data")
    text = read_text(recipe.data, show.note)
    base = locate_base(decisions.base, decisions.revision, show.note)
    from tunesmith.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(base)
    show.stage("tokenizing")
    rules = Rules(recipe.data.loss_on, recipe.data.append_eos, recipe.data.max_length, recipe.data.overlong)
    data = tokenize_text(text, tokenizer, rules, training=training)
    for count, what in ((data.counts["truncated"], f"cut at data.max_length, {rules.max_length} tokens; "
                         "a cut row has no end token"),
                        (data.counts["dropped"],
                         f"dropped: longer than data.max_length, {rules.max_length} tokens"),
                        (data.counts["repeated"], "left out: they also stand in data.validation")):
        if count:
            show.note(f"{count} row{'s' if count > 1 else ''} {what}.")
    longest = max(data.train + data.validation, key=lambda row: len(row.ids))
    if base.positions is not None and len(longest.ids) > base.positions:
        raise RecipeError(f"{longest.place} has {len(longest.ids)} tokens, "
                          f"the base has {base.positions} positions",
                          f"Set data.max_length to {base.positions}, and data.overlong to truncate or drop.",
                          setting="data.max_length")
    return Prepared(decisions, text.content_hash, data, base, tokenizer)
