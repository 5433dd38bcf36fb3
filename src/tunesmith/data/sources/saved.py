"""A folder that `datasets.save_to_disk` wrote: which Arrow files are its rows, in which order, by split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.data.sources.inputs import open_bytes
from tunesmith.errors import DataError
from tunesmith.visible import on_one_line

#: What it writes about a data set is no longer than this.
_MOST_BYTES = 16 << 20


def saved_files(folder: Path) -> list[Path]:
    """The files of one data set, in their order. Raises DataError."""
    path = folder / "state.json"
    try:
        state = _description(path)
        names = [str(each["filename"]) for each in state["_data_files"]]
        reordered = bool(state.get("_indices_data_files"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path}: not the state of a data set that save_to_disk wrote",
                        "Save the data set again, or name its .arrow files.") from None
    if reordered:
        raise DataError(f"{path}: saved by an old version of datasets, with its order in a file of its own",
                        "Save it again: load_from_disk(...).flatten_indices().save_to_disk(...).")
    if bad := next((name for name in names if Path(name).name != name), None):
        raise DataError(f"{path}: names a file outside of its folder: {on_one_line(bad)}")
    return [folder / name for name in names]


def saved_splits(folder: Path) -> list[str]:
    """The names of the splits of a DatasetDict. Raises DataError."""
    path = folder / "dataset_dict.json"
    try:
        names = _description(path)["splits"]
    except (ValueError, LookupError, TypeError, RecursionError):
        names = None
    if not isinstance(names, list) or any(not isinstance(name, str) or Path(name).name != name
                                          for name in names):
        raise DataError(f"{path}: not the list of splits that save_to_disk writes",
                        "Save the data set again.")
    return names


def _description(path: Path) -> Any:
    with open_bytes(path) as file:
        return json.loads(file.read(_MOST_BYTES))
