"""A recipe that fits a file: by what its rows are, by how long they are, and by how many."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.rows import Row
from tunesmith.data.shape_templates import data_settings, needs_chat_template
from tunesmith.data.shapes import LOOKED_AT, Shape, recognise
from tunesmith.data.sources import open_sources
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe
from tunesmith.recipe.schema import DataSection
from tunesmith.verbs.lengths import Base, Lengths, estimated_lengths, refuses_system_turns, token_lengths
from tunesmith.verbs.show import Show

#: More rows are not counted.
_MOST_ROWS = 200_000
#: So many of the longest rows are kept, so that the longest in tokens is among them.
_LONGEST_KEPT = 100
#: No row is learnt longer than this unless the recipe is changed by hand [tokens].
_MOST_TOKENS = 8192
#: Longer texts without a prompt are cut into windows of this length [tokens].
_WINDOW = 2048
#: Different rows that a verdict needs at least, that are held out of large files at most, and from which on a
#: twentieth is held out.
_FEWEST_HELD_OUT, _MOST_HELD_OUT, _HELD_OUT = 5, 256, 32


@dataclass(frozen=True)
class Scan:
    """What was seen of a source.

    rows: how many there are, or `_MOST_ROWS` where not all were counted (`whole`). different: how many differ
    in what is learnt. first: the first rows; longest: of the others those with the most text.
    """

    shape: Shape
    rows: int
    whole: bool
    different: int
    first: list[Row]
    longest: list[Row]

    def texts(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Of each row all that is learnt or given, and the answer."""
        names, answer = [column.name for column in self.shape.parts.values()], self.shape.column("completion")
        return [(_text(row, names), _text(row, [answer or names[0]])) for row in rows]


@dataclass(frozen=True)
class Fit:
    """A recipe for a source, and what it was made from."""

    recipe: Recipe
    scan: Scan
    lengths: Lengths
    chat: bool
    notes: tuple[str, ...]


def scan(source: str, show: Show) -> Scan:
    """Read a source once, keeping few of its rows. Raises DataError, NetworkError."""
    show.stage("looking at the data")
    rows = _rows(source, show)
    first = list(itertools.islice(rows, LOOKED_AT))
    shape = recognise(first, source)
    names = [column.name for column in shape.parts.values()]
    count, seen = 0, set[bytes]()
    longest: list[tuple[int, int, Row]] = []
    for row in itertools.islice(itertools.chain(first, rows), _MOST_ROWS):
        text = _text(row, names)
        seen.add(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
        count += 1
        if count > LOOKED_AT:
            heapq.heappush(longest, (len(text), count, row))
            if len(longest) > _LONGEST_KEPT:
                heapq.heappop(longest)
    whole = next(rows, None) is None
    return Scan(shape, count, whole, len(seen), first, [row for _, _, row in longest])


def _rows(source: str, show: Show) -> Iterator[Row]:
    return open_sources(source, "train", "--data", show.note).rows()


def _text(row: Row, names: Sequence[str]) -> str:
    """What of a row is learnt, as one text."""
    return json.dumps([row.values.get(name) for name in names], ensure_ascii=False, default=str)


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
    held_out = _held_out(scanned.different)
    values = preset.model_dump()
    values["model"] |= {"base": base.name}
    if base.quantization is not None:
        values["model"] |= {"quantization": base.quantization}
    values["data"] |= {"source": source, "prompt": "", "completion": None, "messages": None,
                       "validation": held_out}
    show.stage("measuring the rows")
    settings, lengths, notes = _measured(values["data"], scanned, base)
    values["data"] = settings
    values["train"] |= train_settings(scanned.rows - held_out)
    values["judge"] |= {"max_new_tokens": min(512, max(16, _rounded_up(lengths.most_answers, 16)))}
    recipe = Recipe.model_validate(values)
    notes = [*shape.notes, *notes, *_size_notes(scanned, lengths, recipe.data)]
    chat = recipe.data.chat is not None or needs_chat_template(shape)
    return Fit(recipe, scanned, lengths, chat, tuple(notes))


def _measured(data: dict[str, Any], scanned: Scan, base: Base) -> tuple[dict[str, Any], Lengths, list[str]]:
    """(the data section with templates and lengths, the lengths, what is to be said of them)."""
    shape, notes = scanned.shape, []
    data = data | data_settings(shape, chat=base.is_chat)
    if base.tokenizer is None:
        lengths = estimated_lengths(scanned.texts(scanned.first), scanned.texts(scanned.longest))
    else:
        if base.is_chat and "system" in shape.parts and refuses_system_turns(base.tokenizer):
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
    if different < 2 * _FEWEST_HELD_OUT:
        return 0
    some = max(_FEWEST_HELD_OUT, min(_HELD_OUT, different // 5))
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
