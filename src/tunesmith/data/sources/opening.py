"""Opens what a recipe names as its source: local files, a data set on the Hub, or several of them as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from tunesmith.data.rows import Row
from tunesmith.data.sources.bad_rows import BadRows
from tunesmith.data.sources.files import format_of, read_file
from tunesmith.data.sources.local import LocalData, local_data
from tunesmith.data.sources.mixture import interleave
from tunesmith.data.sources.reading import Reading
from tunesmith.data.sources.source import Read, Source, sliced
from tunesmith.errors import DataError
from tunesmith.hub.client import Tell, quiet
from tunesmith.recipe.schema import DataSection

#: What `data.validation` begins with where it names a split of `data.source`.
SPLIT_PREFIX = "split:"


def open_source(settings: DataSection, key: str = "data.source", tell: Tell = quiet) -> Source:
    """The source of the training rows, or with the key `data.validation` that of the held-out rows.

    tell: receives which files are taken, what is waited for, and later what was skipped. Raises DataError
    when it is missing or unreadable, NetworkError when the Hub does not answer, IntegrityError when what it
    gives is not what it says.
    """
    skip = settings.bad_rows == "skip"
    if key == "data.source":
        return open_sources(settings.source, settings.split, key, tell, name=settings.name, skip=skip,
                            weights=settings.weights)
    held_out = settings.validation
    if not isinstance(held_out, str | list):
        raise TypeError(f"data.validation is {held_out}, which is no source")
    if isinstance(held_out, str) and held_out.startswith(SPLIT_PREFIX):
        split = held_out.removeprefix(SPLIT_PREFIX)
        return open_sources(settings.source, split, key, tell, name=settings.name, skip=skip)
    return open_sources(held_out, settings.split, key, tell, name=settings.name, skip=skip)


def open_sources(sources: str | Sequence[str], split: str, key: str, tell: Tell = quiet, *,
                 name: str | None = None, skip: bool = False,
                 weights: Sequence[float] | None = None) -> Source:
    """One source, or several as one: in turn, or with weights as a mixture. Raises as `open_source`."""
    bad = BadRows(skip)
    names = [sources] if isinstance(sources, str) else list(sources)
    alone = len(names) == 1 and key == "data.source"
    opened = [_open(each, split, key, tell, Reading(bad, name), alone) for each in names]
    if len(opened) == 1:
        return opened[0]
    source = Source(", ".join(names), [file for each in opened for file in each.files],
                    lambda: chain.from_iterable(each.read() for each in opened), bad, tell, key,
                    [part for each in opened for part in each.made_of])

    def mixture() -> Iterator[Row]:
        def ended(number: int, taken: list[int]) -> None:
            if not all(taken):
                raise DataError(f"{key}: {names[number]} has no rows")
            others = ", ".join(f"{count:,} of {each}" for each, count in zip(names, taken, strict=True)
                               if each != names[number])
            source.say(f"data.weights: the mixture ends with the last of {taken[number]:,} rows of "
                       f"{names[number]}; with them are {others}.")

        return interleave([each.read() for each in opened], weights or [], ended)

    if weights is not None:
        source.read = mixture
    return source


def _open(source: str, split: str, key: str, tell: Tell, reading: Reading, alone: bool) -> Source:
    found = local_data(source, key, reading.name)
    if found is None:
        from tunesmith.data.sources.hub import open_hub

        return open_hub(source, split, key, tell, reading)
    parts = found.chosen(split)
    taken = [path for _, files in parts for path in files]
    if alone and reading.name is not None:
        _require_named(found, taken, key)
    if found.named or len(taken) > 1 or found.left_out:
        tell(f"{key}: {found.note(taken)}")
    reads = [sliced(_reader(files, reading), part) for part, files in parts]
    return Source(source, [found.name_of(path) for path in taken],
                  lambda: chain.from_iterable(read() for read in reads), reading.bad, tell, key, [*taken])


def _reader(files: list[Path], reading: Reading) -> Read:
    return lambda: chain.from_iterable(read_file(path, reading) for path in files)


def _require_named(found: LocalData, taken: list[Path], key: str) -> None:
    """Raise DataError for a `data.name` that nothing is named by: a configuration, or a sheet."""
    if not found.configured and not any(format_of(path) == ".xlsx" for path in taken):
        raise DataError(f"{key}: {found.source} has neither configurations nor sheets",
                        "Leave data.name out.", setting="data.name")


def read_source(source: str, split: str, key: str = "data.source", tell: Tell = quiet) -> list[Row]:
    """All rows of a source as a list, in its order; for sources that are known to be small.

    source: as `data.source`. split: as `data.split`. key: the recipe's key that named it, for errors. Raises
    as `open_source`, and DataError when it has no rows.
    """
    return list(open_sources(source, split, key, tell).rows())
