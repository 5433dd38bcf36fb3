"""What train and evaluate both need before weights are loaded: the rows as tokens, the base's files, its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.data import Dataset, TextSet, read_text, tokenize_text
from tunesmith.data.tokenize import Rules
from tunesmith.errors import RecipeError
from tunesmith.model.base_config import refuse_two_ways, require_agreement, require_causal, require_computable
from tunesmith.model.engines import choose_engine, settle_engine
from tunesmith.model.files import BaseFiles, locate_base, locate_config
from tunesmith.planning import can_count, count_parameters
from tunesmith.recipe import Recipe
from tunesmith.verbs.show import Show


@dataclass(frozen=True)
class Prepared:
    """The data and the base of a recipe, all checked, no weights loaded.

    adapter_parameters: how large the adapter will be; None for a family whose arithmetic is not known.
    """

    text: TextSet
    data: Dataset
    base: BaseFiles
    tokenizer: Any
    engine: str
    engine_reason: str
    adapter_parameters: int | None


def prepare(recipe: Recipe, show: Show) -> Prepared:
    """Read the data, find the base, tokenize. Cheap checks come first.

    Raises RecipeError, DataError, EnvironmentFault, NetworkError or IntegrityError.
    """
    show.stage("reading the data")
    text = read_text(recipe.data, show.note)
    _, config = locate_config(recipe.model.base, recipe.model.revision, show.note)
    engine, reason = choose_engine(recipe.train.engine, config, recipe.train.matmul)
    parameters = None
    if can_count(config, recipe.lora.target_modules):
        parameters = count_parameters(config, r=recipe.lora.r, target_modules=recipe.lora.target_modules).trainable
    refuse_two_ways(config, recipe.model.base)
    require_agreement(config, recipe.model.base, recipe.model.quantization)
    show.stage("starting torch")
    from tunesmith.model.device import choose_device, why_spread
    from tunesmith.model.tokenizer import load_tokenizer

    require_computable(config, recipe.model.base, recipe.model.quantization, choose_device(recipe.model.device))
    if engine == "hf":  # what a base cannot do is said before its weights are downloaded
        require_causal(config, recipe.model.base)
        parameters = _count(recipe, config)
    base = locate_base(recipe.model.base, recipe.model.revision, show.note)
    engine, reason = settle_engine(engine, reason, why_spread(base, recipe.model.quantization, recipe.model.device),
                                   wanted=recipe.train.engine, matmul=recipe.train.matmul)
    if recipe.train.engine == "auto" and engine == "hf":
        show.note(f"Engine hf: {reason}.")
    tokenizer = load_tokenizer(base)
    show.stage("tokenizing")
    rules = Rules(recipe.data.loss_on, recipe.data.append_eos, recipe.data.max_length, recipe.data.overlong)
    data = tokenize_text(text, tokenizer, rules)
    for count, what in ((data.counts["truncated"], f"cut at data.max_length, {rules.max_length} tokens; "
                         "a cut row has no end token"),
                        (data.counts["dropped"], f"dropped: longer than data.max_length, {rules.max_length} tokens"),
                        (data.counts["repeated"], "left out: they also stand in data.validation")):
        if count:
            show.note(f"{count} row{'s' if count > 1 else ''} {what}.")
    longest = max(data.train + data.validation, key=lambda row: len(row.ids))
    if base.positions is not None and len(longest.ids) > base.positions:
        raise RecipeError(f"data.max_length: {longest.place} has {len(longest.ids)} tokens, "
                          f"the base has {base.positions} positions",
                          f"Set data.max_length to {base.positions}, and data.overlong to truncate or drop.")
    return Prepared(text, data, base, tokenizer, engine, reason, parameters)


def _count(recipe: Recipe, config: dict[str, Any]) -> int:
    """The adapter's parameters on a base whose arithmetic is not known here, which is built without memory for it."""
    from tunesmith.model.hf.meta import count_on_meta
    from tunesmith.model.lora import LoraSettings

    lora = recipe.lora
    return count_on_meta(config, LoraSettings(lora.r, lora.alpha, lora.dropout, lora.target_modules)).trainable
