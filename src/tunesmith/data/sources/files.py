"""Which reader a file has, by the end of its name. A new format is one file here, and its line in this
table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tunesmith.data.rows import Row
from tunesmith.data.sources.arrow import read_arrow, read_parquet
from tunesmith.data.sources.csv_table import read_csv
from tunesmith.data.sources.inputs import compression_of
from tunesmith.data.sources.json_lines import read_json, read_jsonl
from tunesmith.data.sources.plain_text import read_txt
from tunesmith.data.sources.reading import Reading
from tunesmith.data.sources.spreadsheet import read_xlsx

READERS: dict[str, Callable[[Path, Reading], Iterator[Row]]] = {
    ".jsonl": read_jsonl, ".ndjson": read_jsonl, ".json": read_json, ".csv": read_csv, ".tsv": read_csv,
    ".parquet": read_parquet, ".arrow": read_arrow, ".xlsx": read_xlsx, ".txt": read_txt}
SUFFIXES = tuple(READERS)
#: The same for messages.
KNOWN = f"{', '.join(SUFFIXES)}, each also with .gz or .zst"


def format_of(path: Path) -> str | None:
    """The key of READERS for a file, whatever its case and compression; None for a file that is none of
    them.
    """
    plain = path.with_name(path.name.removesuffix(path.suffix)) if compression_of(path) else path
    suffix = plain.suffix.lower()
    return suffix if suffix in READERS else None


def read_file(path: Path, reading: Reading) -> Iterator[Row]:
    """The rows of a file. Raises DataError."""
    return READERS[format_of(path) or ""](path, reading)


def read_files(paths: list[Path]) -> list[Row]:
    """All rows of several files, in order, as a list. Raises DataError."""
    return [row for path in paths for row in read_file(path, Reading())]
