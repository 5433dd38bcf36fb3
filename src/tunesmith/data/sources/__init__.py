"""Where rows come from: local files, or a data set on the Hub. A new source is one file here."""

from __future__ import annotations

import glob
from pathlib import Path

from tunesmith import embedded
from tunesmith.data.rows import Row
from tunesmith.data.sources.files import SUFFIXES, read_files
from tunesmith.errors import DataError
from tunesmith.hub.client import Tell, quiet
from tunesmith.paths import close_file, expanded

__all__ = ["local_files", "read_source"]


def read_source(source: str, split: str, key: str = "data.source", tell: Tell = quiet) -> list[Row]:
    """All rows of a source, in its order.

    source: a file, a folder or a glob of .jsonl, .json, .csv or .parquet files; `embedded:quotes`; or a Hub
    id. key: the recipe's key that named it, for errors. tell: receives what is waited for. Raises DataError
    when it is missing, empty or unreadable, NetworkError when the Hub does not answer, IntegrityError when
    what it gives is not what it says.
    """
    files = local_files(source, key)
    if files is not None:
        rows = read_files(files)
    else:
        from tunesmith.data.sources.hub import read_hub

        rows = read_hub(source, split, key, tell)
    if not rows:
        raise DataError(f"{key}: {source} has no rows")
    return rows


def local_files(source: str, key: str = "data.source") -> list[Path] | None:
    """The files of a local source, sorted; None when the source can only be a Hub id. Raises DataError."""
    embedded_path = embedded.path_of(source)
    path = embedded_path or expanded(source)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(f"{key}: {path}: files end in {', '.join(SUFFIXES)}, "
                            f"this in {path.suffix or 'nothing'}")
        return [path]
    if path.is_dir():
        paths = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in SUFFIXES)
        if not paths:
            raise DataError(f"{key}: the folder {path} has no {', '.join(SUFFIXES)} files")
        return paths
    if glob.has_magic(source):
        paths = sorted(Path(p) for p in glob.glob(source, recursive=True) if Path(p).suffix in SUFFIXES)
        if not paths:
            raise DataError(f"{key}: no {', '.join(SUFFIXES)} file matches {source}")
        return paths
    if path.suffix in SUFFIXES or source.count("/") > 1 or source.startswith((".", "/", "~", "embedded:")):
        raise DataError(f"{key}: {source}: no such file or folder",
                        f"{close_file(path)}Paths are looked for from the current "
                        "folder, then from the recipe's.")
    return None
