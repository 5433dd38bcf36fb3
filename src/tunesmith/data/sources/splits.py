"""Splits: which one a file's name says it is of, and what `data.split` asks for (`train[:5%]`,
`train+test`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from tunesmith.errors import DataError

#: What splits are called, as the library `datasets` knows them, and what each is called here.
_CALLED = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
           "val": "validation", "dev": "validation", "test": "test", "testing": "test", "eval": "test",
           "evaluation": "test"}
_WORDS = re.compile(r"[-._ 0-9]+")
#: A shard as the Hub has them: train_sft-00000-of-00002.parquet is of the split train_sft.
_SHARD = re.compile(r"(?P<split>\w+)-\d{5,6}-of-\d{5,6}\b.*")
_PART = re.compile(r"\s*(?P<name>[^\[\]+]+?)\s*(?P<slice>\[[^\[\]]*\](\([a-z0-9_]+\))?)?\s*")
#: What asks for all splits.
ALL = "all"


def split_of(path: PurePath) -> str | None:
    """The split that a file is of by the names of its folders and its own; None where they say nothing.

    path: below the folder of the data set.
    """
    if (shard := _SHARD.fullmatch(path.name)) and _word(shard["split"].replace("_", "-")):
        return _CALLED.get(shard["split"].lower(), shard["split"])
    *folders, name = path.parts
    exact = next((_CALLED[each.lower()] for each in folders if each.lower() in _CALLED), None)
    return exact or next((word for each in (name, *folders) if (word := _word(each))), None)


def _word(name: str) -> str | None:
    return next((_CALLED[word] for word in _WORDS.split(name.lower()) if word in _CALLED), None)


class NoSuchSplit(DataError):
    """A split that is asked for is not there. available: those that are."""

    def __init__(self, source: str, name: str, available: Iterable[str], hint: str = "") -> None:
        self.available = list(map(str, available))
        super().__init__(f"{source} has no split {name!r}", hint or f"It has {', '.join(self.available)}.",
                         setting="data.split")


@dataclass(frozen=True)
class Part:
    """A split, or a slice of one, such as `[:5%]`; empty for all of it."""

    name: str
    slice: str


def parse_split(text: str) -> list[Part]:
    """What `data.split` asks for. Raises DataError."""
    parts = []
    for word in text.split("+"):
        found = _PART.fullmatch(word)
        if found is None:
            raise DataError(f"{text!r} is no split",
                            "Write a name, a slice such as train[:5%] or train[100:200], or "
                            "several joined by +.", setting="data.split")
        parts.append(Part(found["name"], found["slice"] or ""))
    return parts


def match_split(name: str, available: Iterable[str]) -> str | None:
    """The one of these splits that is meant; `valid`, `val` and `dev` mean validation where none is called
    so.
    """
    names = list(available)
    if name in names:
        return name
    meant = _CALLED.get(name.lower())
    return meant if meant in names else None


def bounds(part: Part, rows: int) -> tuple[int, int]:
    """The first row of a slice and the one after its last, from 0, as `datasets` counts them. Raises
    DataError.
    """
    import datasets

    try:
        (found,) = datasets.ReadInstruction.from_spec(f"train{part.slice}").to_absolute({"train": rows})
    except (ValueError, AssertionError) as error:
        raise DataError(f"{part.name}{part.slice}: {str(error).splitlines()[0]}",
                        setting="data.split") from None
    return found.from_ or 0, rows if found.to is None else found.to
