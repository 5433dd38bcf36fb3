"""Rows from a data set on the Hub, through `datasets` with whatever login, cache and offline mode the user has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tunesmith.data.rows import Row
from tunesmith.errors import DataError, Kind, NetworkError, TunesmithError
from tunesmith.hub import call, download, parse_hub_id
from tunesmith.hub.calls import Tell, explained, not_reached, redacted, status
from tunesmith.hub.download import current_commit


def read_hub(source: str, split: str, key: str, tell: Tell) -> list[Row]:
    """All rows of one split of a Hub data set. tell: receives what is waited for.

    Raises DataError, NetworkError when the Hub cannot be reached, IntegrityError when a file arrives damaged, twice.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # a count sent elsewhere is telemetry
    try:
        found = _load(datasets, source, split, key, tell)
    except DatasetNotFoundError:
        raise _no_such(source, key) from None
    except ValueError as error:
        if "split" in str(error):
            raise DataError(f"{source} has no split {split!r}", str(error).splitlines()[0],
                            setting="data.split") from None
        raise DataError(f"{key}: {source}: {str(error).splitlines()[0]}") from None
    except TunesmithError as error:
        raise (_no_such(source, key) if error.kind is Kind.NO_SUCH_REPOSITORY else error) from None
    except Exception as error:  # datasets raises what its parts raise; here only the network or a broken set are left
        raise _explained(source, key, error) from None
    try:
        return [Row(dict(value), f"{source}, row {number}") for number, value in enumerate(found, start=1)]
    except (ValueError, OverflowError) as error:
        raise DataError(f"{key}: {source}: a row holds what Python cannot: {str(error).splitlines()[0]}") from None


def _no_such(source: str, key: str) -> DataError:
    return DataError(f"{key}: {source} is neither a local file nor a data set that the Hub shows you",
                     "Check the name; a private or gated one needs `hf auth login`.")


def _load(datasets: Any, source: str, split: str, key: str, tell: Tell) -> Any:
    """The split, once its files are in the client's cache and checked; `datasets` then reads them from there."""
    def explain(error: Exception, what: str) -> TunesmithError:
        return explained(error, what).reword(setting=key)

    wanted = parse_hub_id(source)
    if wanted is None or wanted.revision is not None:
        return call(source, lambda: datasets.load_dataset(source, split=split), tell, explain=_as_it_is)
    _, by_hub = current_commit(source, None, tell, kind="dataset", explain=explain)
    if not by_hub:
        with _without_network(datasets):
            return datasets.load_dataset(source, split=split)
    builder = call(source, lambda: datasets.load_dataset_builder(source), tell, explain=_as_it_is)
    files = (builder.config.data_files or {}).get(split) or []
    prefix = f"hf://datasets/{source}@"
    names = [str(file).removeprefix(prefix).partition("/") for file in files if str(file).startswith(prefix)]
    if names:
        download(source, names[0][0], [name for _, _, name in names], tell, kind="dataset")
    return call(source, lambda: datasets.load_dataset(source, split=split), tell, explain=_as_it_is)


@contextmanager
def _without_network(datasets: Any) -> Iterator[None]:
    """While it lasts, `datasets` looks at its cache alone, instead of asking a Hub that does not answer for a minute."""
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE, datasets.logging.get_verbosity()
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    datasets.logging.set_verbosity_error()  # which copy is taken has been told
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE, verbosity = before
        datasets.logging.set_verbosity(verbosity)


def _as_it_is(error: Exception, what: str) -> Exception:
    """`read_hub` words these errors itself: most are about the data."""
    return error


def _explained(source: str, key: str, error: Exception) -> TunesmithError:
    reason = redacted((str(error).splitlines() or [type(error).__name__])[0])
    if not_reached(error) or status(error) is not None or type(error).__module__.startswith(("http", "requests")):
        return NetworkError(f"{key}: {source}: the Hub cannot be reached: {reason}",
                            "Check the network, or name a local file.")
    return DataError(f"{key}: {source}: {reason}")
