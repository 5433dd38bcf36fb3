"""Rows from a data set on the Hub, through `datasets` with whatever login, cache and offline mode the user has."""

from __future__ import annotations

from tunesmith.data.rows import Row
from tunesmith.errors import DataError, NetworkError, TunesmithError


def read_hub(source: str, split: str, key: str) -> list[Row]:
    """All rows of one split of a Hub data set. Raises DataError, or NetworkError when the Hub cannot be reached."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # a count sent elsewhere is telemetry
    try:
        found = datasets.load_dataset(source, split=split)
    except DatasetNotFoundError as error:
        raise DataError(f"{key}: {source} is neither a local file nor a data set that the Hub shows you",
                        str(error).splitlines()[0]) from None
    except ValueError as error:
        if "split" in str(error):
            raise DataError(f"data.split: {source} has no split {split!r}", str(error).splitlines()[0]) from None
        raise DataError(f"{key}: {source}: {str(error).splitlines()[0]}") from None
    except Exception as error:  # datasets raises what its parts raise; here only the network or a broken set are left
        raise _explained(source, key, error) from None
    return [Row(dict(value), f"{source}, row {number}") for number, value in enumerate(found, start=1)]


def _explained(source: str, key: str, error: Exception) -> TunesmithError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(("http", "requests")):
        return NetworkError(f"{key}: {source}: the Hub cannot be reached: {reason}",
                            "Check the network, or name a local file.")
    return DataError(f"{key}: {source}: {reason}")
