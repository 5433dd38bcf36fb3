"""Rows from a data set on the Hub, through `datasets` with the user's login, cache and offline mode."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import yaml

from tunesmith.data.rows import Row
from tunesmith.errors import DataError, Kind, TunesmithError
from tunesmith.hub import call, download, parse_hub_id
from tunesmith.hub.client import Tell, quiet_datasets, without_network
from tunesmith.hub.download import current_commit
from tunesmith.hub.failures import explained, raised_by_us, redacted, underlying_failure

#: What `datasets` lets through of its readers' failures on broken data, beside its own class and pyarrow's.
_BROKEN = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OSError, EOFError,
           yaml.YAMLError, zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error)


def read_hub(source: str, split: str, key: str, tell: Tell) -> list[Row]:
    """All rows of one split of a Hub data set. tell: receives what is waited for.

    Raises DataError, NetworkError when the Hub cannot be reached, DiskError when its cache is full,
    IntegrityError when a file arrives damaged, twice.
    """
    hub_id = parse_hub_id(source)
    if hub_id is None or hub_id.revision is not None:
        raise _no_such(source, key)
    with quiet_datasets() as datasets:
        table = _load(datasets, source, split, key, tell)
        try:
            return [Row(dict(value), f"{source}, row {number}")
                    for number, value in enumerate(table, start=1)]
        except (ValueError, OverflowError) as error:
            raise DataError(f"{key}: {source}: a row holds what Python cannot: "
                            f"{str(error).splitlines()[0]}") from None


def _no_such(source: str, key: str) -> DataError:
    return DataError(f"{key}: {source} is neither a local file nor a data set that the Hub shows you",
                     "Check the name; a private or gated one needs `hf auth login`.")


def _load(datasets: Any, source: str, split: str, key: str, tell: Tell) -> Any:
    """The split, once its files are in the client's cache and checked; `datasets` reads them from there."""

    def explain(error: Exception, what: str) -> TunesmithError:
        failure = explained(error, what)
        if failure.kind is Kind.NO_SUCH_REPOSITORY:
            return _no_such(source, key)
        return failure.reword(setting=key)

    def ask(action: Callable[[], Any]) -> Any:
        return call(source, lambda: _read(action, datasets, source, key), tell, explain=explain)

    _, by_hub = current_commit(source, None, tell, kind="dataset", explain=explain)
    if not by_hub:
        with without_network(datasets):
            builder = ask(lambda: datasets.load_dataset_builder(source))
            _require_split(builder, split, source)
            return ask(lambda: datasets.load_dataset(source, split=split))
    builder = ask(lambda: datasets.load_dataset_builder(source))
    names = _require_split(builder, split, source)
    prefix = f"hf://datasets/{source}@"
    files = [str(file).removeprefix(prefix).partition("/") for name in names
             for file in (builder.config.data_files or {}).get(name) or [] if str(file).startswith(prefix)]
    if files:
        download(source, files[0][0], [name for _, _, name in files], tell, kind="dataset", explain=explain)
    return ask(lambda: datasets.load_dataset(source, split=split))


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
            raise _no_such(source, key) from None
        reason = redacted((str(error).splitlines() or [type(error).__name__])[0])
        raise DataError(f"{key}: {source}: {reason}") from None


def _require_split(builder: Any, split: str, source: str) -> set[str]:
    """The names of the splits in `split`, such as `train[:100]+test`. Raises DataError if one is missing."""
    available = list(builder.config.data_files or builder.info.splits or ())
    names = {part.strip().partition("[")[0] for part in split.split("+")}
    if "all" in names:
        return set(available)
    if available and (unknown := sorted(names - set(available))):
        raise DataError(f"{source} has no split {unknown[0]!r}", f"It has {', '.join(map(str, available))}.",
                        setting="data.split")
    return names
