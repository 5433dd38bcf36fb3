"""A recipe that fits a file: by what its rows are, by how long they are, and by how many."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tunesmith.data.shape_templates import data_settings, needs_chat_template, plain_settings
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe
from tunesmith.recipe.schema import DataSection
from tunesmith.verbs.lengths import (
    Base,
    Lengths,
    estimated_lengths,
    refuses_system_turns,
    token_lengths,
    written_out,
)
from tunesmith.verbs.scan import FEWEST_HELD_OUT, Scan, scan
from tunesmith.verbs.show import Show

#: No row is learnt longer than this unless the recipe is changed by hand [tokens].
_MOST_TOKENS = 8192
#: Longer texts without a prompt are cut into windows of this length [tokens].
_WINDOW = 2048
#: So many rows are held out of large files at most, and so many before less than a fifth is.
_MOST_HELD_OUT, _HELD_OUT = 256, 32


@dataclass(frozen=True)
class Fit:
    """A recipe for a source, and what it was made from."""

    recipe: Recipe
    scan: Scan
    lengths: Lengths
    chat: bool
    held_out: int
    notes: tuple[str, ...]


def fit(source: str, preset: Recipe, base: Base, show: Show) -> Fit:
    """A recipe for a source. base: its tokenizer, if that is here. preset: what the file says nothing about.

    Raises DataError for rows that are of no known shape or that cannot be learnt from, RecipeError for
    conversations and a base that has no chat template.
    """
    scanned = scan(source, show)
    shape = scanned.shape
    if needs_chat_template(shape) and not base.is_chat:
        raise RecipeError(f"{source} has conversations, and {base.name} has no chat template to write them "
                          "in", "Name a base that was made for chats (often called Instruct): --base BASE",
                          setting="model.base")
    own = scanned.held_out
    held_out = own.rows if own else _held_out(scanned.different)
    values = preset.model_dump()
    values["model"] |= {"base": base.name}
    if base.quantization is not None:
        values["model"] |= {"quantization": base.quantization}
    values["data"] |= {"source": source, "split": scanned.split, "prompt": "", "completion": None,
                       "messages": None, "validation": own.setting if own else held_out}
    show.stage("measuring the rows")
    settings, lengths, notes = _measured(values["data"], scanned, base)
    values["data"] = settings
    values["train"] |= train_settings(scanned.rows - (0 if own else held_out))
    values["judge"] |= {"max_new_tokens": min(512, max(16, _rounded_up(lengths.most_answers, 16)))}
    recipe = Recipe.model_validate(values)
    notes = [*scanned.notes, *shape.notes, *notes, *_size_notes(scanned, lengths, recipe.data)]
    chat = recipe.data.chat is not None or needs_chat_template(shape)
    return Fit(recipe, scanned, lengths, chat, held_out, tuple(notes))


def _measured(data: dict[str, Any], scanned: Scan, base: Base) -> tuple[dict[str, Any], Lengths, list[str]]:
    """(the data section with templates and lengths, the lengths, what is to be said of them)."""
    shape, notes = scanned.shape, []
    data = data | data_settings(shape, chat=base.is_chat)
    if (tokens := written_out(base.tokenizer, shape, scanned.first)) and data["messages"] is None:
        data |= {"chat": None, "special_tokens": True, **plain_settings(shape)}
        notes.append(f"The rows have special tokens of the base written out ({', '.join(tokens)}): they are "
                     "taken as such, and not added again (data.special_tokens).")
    if base.tokenizer is None:
        lengths = estimated_lengths(scanned.texts(scanned.first), scanned.texts(scanned.longest))
    else:
        if data.get("chat") and "system" in shape.parts and refuses_system_turns(base.tokenizer):
            data = data | data_settings(shape, chat=True, system_turn=False)
            notes.append("The base's chat template refuses a system turn: it begins the user's turn instead.")
        if base.tokenizer.eos_token_id is None:
            data["append_eos"] = False
            notes.append("The base's tokenizer has no end token, so answers will not end by themselves.")
        lengths, refused = token_lengths(DataSection(**data), scanned.first, scanned.longest, base)
        notes += [f"Training will stop at this row: {message}" for message in refused]
    limit = min(base.positions or _MOST_TOKENS, _MOST_TOKENS)
    longest = _rounded_up(lengths.longest, 64 if lengths.longest > 64 else 8)
    if shape.name == "texts" and longest > min(limit, _WINDOW):
        return data | {"max_length": min(limit, _WINDOW), "overlong": "split"}, lengths, notes
    return data | {"max_length": min(limit, longest)}, lengths, notes


def _size_notes(scanned: Scan, lengths: Lengths, data: DataSection) -> list[str]:
    """What the sizes cost."""
    notes = []
    if longer := lengths.longer_than(data.max_length):
        fate = "split into windows" if data.overlong == "split" else "dropped"
        notes.append(f"{longer:,} of the rows that were looked at are longer than data.max_length, "
                     f"{data.max_length:,} tokens, and will be {fate} (data.overlong).")
    if not data.validation:
        rows = "one row is" if scanned.different == 1 else f"{scanned.different} different rows are"
        notes.append(f"{rows.capitalize()} too few to hold any out, so nothing will say whether training "
                     "helped.")
    return notes


def _held_out(different: int) -> int:
    """How many rows are held out: enough for a verdict, where there are enough."""
    if different < 2 * FEWEST_HELD_OUT:
        return 0
    some = max(FEWEST_HELD_OUT, min(_HELD_OUT, different // 5))
    return min(_MOST_HELD_OUT, max(some, round(0.05 * different)))


def train_settings(rows: int) -> dict[str, Any]:
    """How long to train on so many rows, in which steps, and how often to look."""
    batch_size = 16 if rows >= 128 else 8 if rows >= 32 else 4
    steps_an_epoch = math.ceil(rows / batch_size)
    epochs = 1 if rows > 50_000 else 2 if rows > 10_000 else min(10, max(3, math.ceil(60 / steps_an_epoch)))
    steps = steps_an_epoch * epochs
    every = max((n for n in (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000) if 8 * n <= steps), default=1)
    return {"max_steps": None, "num_epochs": float(epochs), "batch_size": batch_size,
            "warmup_steps": min(100, round(0.05 * steps)), "save_steps": every, "eval_steps": every}


def _rounded_up(number: int, to: int) -> int:
    return max(to, math.ceil(number / to) * to)
