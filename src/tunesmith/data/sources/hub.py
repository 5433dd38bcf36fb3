"""Rows from a data set on the Hub, through `datasets` with the user's login, cache and offline mode."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from tunesmith.data.rows import Row
from tunesmith.data.sources.arrow import read_arrow
from tunesmith.data.sources.reading import Reading
from tunesmith.data.sources.source import Read, Source, sliced
from tunesmith.data.sources.splits import ALL, NoSuchSplit, Part, match_split, parse_split
from tunesmith.errors import DataError, Kind, TunesmithError
from tunesmith.hub import call, download, parse_hub_id
from tunesmith.hub.client import Tell, quiet_datasets, without_network
from tunesmith.hub.download import current_commit
from tunesmith.hub.failures import explained, raised_by_us, redacted, underlying_failure
from tunesmith.visible import on_one_line

#: What `datasets` lets through of its readers' failures on broken data, beside its own class and pyarrow's.
_BROKEN = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OSError, EOFError,
           yaml.YAMLError, zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error)


def open_hub(source: str, split: str, key: str, tell: Tell, reading: Reading) -> Source:
    """One split of a Hub data set, or what `data.split` makes of its splits. tell: receives what is waited
    for.

    Raises DataError, NetworkError when the Hub cannot be reached, DiskError when its cache is full,
    IntegrityError when a file arrives damaged, twice.
    """
    hub_id = parse_hub_id(source)
    if hub_id is None or hub_id.revision is not None:
        raise _no_such(source, key)
    with quiet_datasets() as datasets:
        found = _load(datasets, _Wanted(source, reading.name, split), key, tell)
    reads = [sliced(_reader(table, source, key, reading), part) for part, table in found.parts]

    def rows() -> Iterator[Row]:
        for number, row in enumerate(chain.from_iterable(read() for read in reads), start=1):
            yield replace(row, place=f"{source}, row {number}")

    return Source(source, [f"{source}/{file}" for file in found.files], rows, reading.bad, tell, key,
                  found.made_of)


def _reader(table: Any, source: str, key: str, reading: Reading) -> Read:
    """The rows of a split, from the Arrow files that `datasets` made of it: in bounded memory, and images or
    sounds as the bytes that they are.
    """
    files = [Path(each["filename"]) for each in table.cache_files]
    if files:
        return lambda: chain.from_iterable(read_arrow(file, reading) for file in files)

    def rows() -> Iterator[Row]:
        try:
            for value in table:
                yield Row(dict(value), source, from_arrow=True)
        except (ValueError, OverflowError) as error:
            raise DataError(f"{key}: {source}: a row holds what Python cannot: "
                            f"{str(error).splitlines()[0]}") from None

    return rows


@dataclass(frozen=True)
class _Wanted:
    """What is to be read of a data set. name: its configuration."""

    source: str
    name: str | None
    split: str


def _no_such(source: str, key: str) -> DataError:
    return DataError(f"{key}: {source} is neither a local file nor a data set that the Hub shows you",
                     "Check the name; a private or gated one needs `hf auth login`.")


@dataclass(frozen=True)
class _Loaded:
    """Each part of what `data.split` asks for, with its whole split as a table; the files of all of them, and
    what they are known by: with their commit.
    """

    parts: list[tuple[Part, Any]]
    files: list[str]
    made_of: list[Path | str]


def _load(datasets: Any, wanted: _Wanted, key: str, tell: Tell) -> _Loaded:
    """The splits, once their files are in the client's cache and checked; `datasets` reads them from
    there.
    """
    source = wanted.source

    def explain(error: Exception, what: str) -> TunesmithError:
        failure = explained(error, what)
        if failure.kind is Kind.NO_SUCH_REPOSITORY:
            return _no_such(source, key)
        return failure.reword(setting=key)

    def ask(action: Callable[[], Any]) -> Any:
        return call(source, lambda: _read(action, datasets, source, key), tell, explain=explain)

    def load(split: str) -> Any:
        return ask(lambda: datasets.load_dataset(source, wanted.name, split=split))

    _, by_hub = current_commit(source, None, tell, kind="dataset", explain=explain)
    with nullcontext() if by_hub else without_network(datasets):
        builder = ask(lambda: _builder(datasets, wanted, key))
        parts = _parts(builder, wanted)
        names = list(dict.fromkeys(name for _, name in parts))
        if ALL in names:
            names = list(_splits(builder))
        prefix = f"hf://datasets/{source}@"
        files = [str(file).removeprefix(prefix).partition("/") for name in names
                 for file in (builder.config.data_files or {}).get(name) or []
                 if str(file).startswith(prefix)]
        paths = [path for _, _, path in files]
        if files and by_hub:
            download(source, files[0][0], paths, tell, kind="dataset", explain=explain)
        tables = {name: load(name) for name in dict.fromkeys(name for _, name in parts)}
    return _Loaded([(part, tables[name]) for part, name in parts], paths,
                   ["".join(file) for file in files]
                   or [str(table._fingerprint) for table in tables.values()])


def _parts(builder: Any, wanted: _Wanted) -> list[tuple[Part, str]]:
    """The parts of what `data.split` asks for, each with its split's name. Raises NoSuchSplit."""
    available = _splits(builder)
    parts = []
    for part in parse_split(wanted.split):
        name = match_split(part.name, available) or (part.name if part.name == ALL or not available else None)
        if name is None:
            raise NoSuchSplit(wanted.source, part.name, available)
        parts.append((part, name))
    return parts


def _splits(builder: Any) -> list[str]:
    """The names of the splits; none where the data set says them only once it is read."""
    return [str(name) for name in builder.config.data_files or builder.info.splits or ()]


def _builder(datasets: Any, wanted: _Wanted, key: str) -> Any:
    """The builder of the configuration. Raises DataError where it is not named, or is not there."""
    names = datasets.get_dataset_config_names(wanted.source)
    usual = datasets.get_dataset_default_config_name(wanted.source)
    shown = ", ".join(on_one_line(str(name), 40) for name in names[:40])
    if wanted.name is None and usual is None and len(names) > 1:
        raise DataError(f"{key}: {wanted.source} has several configurations: {shown}",
                        f"Say which one: --set data.name='{names[0]}'", setting="data.name")
    if wanted.name is not None and names and wanted.name not in names:
        raise DataError(f"{key}: {wanted.source} has no configuration {wanted.name!r}", f"It has {shown}.",
                        setting="data.name")
    return datasets.load_dataset_builder(wanted.source, wanted.name)


def _read(action: Callable[[], Any], datasets: Any, source: str, key: str) -> Any:
    """What `datasets` makes of the data. Raises DataError, or the failure of Hub or disk behind it."""
    from pyarrow import ArrowException

    try:
        return action()
    except (datasets.exceptions.DatasetsError, ArrowException, *_BROKEN) as error:
        if raised_by_us(error):
            raise
        if (cause := underlying_failure(error)) is not None:
            raise cause from None
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            from huggingface_hub import HfApi

            HfApi().auth_check(source, repo_type="dataset")  # raises what `datasets` hides: that it is gated
            raise _no_such(source, key) from None
        reason = redacted((str(error).splitlines() or [type(error).__name__])[0])
        raise DataError(f"{key}: {source}: {reason}") from None
