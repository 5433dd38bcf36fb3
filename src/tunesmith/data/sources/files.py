"""Rows from .jsonl, .json, .csv and .parquet files; each error names the file and the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tunesmith.data.rows import Row
from tunesmith.errors import DataError


def read_files(paths: list[Path]) -> list[Row]:
    """The rows of several files, in order. Raises DataError."""
    return [row for path in paths for row in READERS[path.suffix](path)]


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text (byte 0x{content[error.start]:02x})",
                        "Save the file as UTF-8, for example: iconv -f latin1 -t utf-8.") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    return text


def _object(value: object, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place}: a row is a JSON object with columns, this is {type(value).__name__}")
    return Row(value, place)


def _jsonl(path: Path) -> Iterator[Row]:
    # Split at \n alone: a JSON string may hold U+2028 and the like, at which str.splitlines would cut.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(f"{place}: broken JSON: {reason}", f"The line begins: {line[:60]}") from None
        yield _object(value, place)


def _json(path: Path) -> Iterator[Row]:
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: broken JSON: {error.msg}, column {error.colno}",
                        "A .json file is one list of objects; one object a line is .jsonl.") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deep to read") from None
    if not isinstance(value, list):
        raise DataError(f"{path}: a .json file is one list of objects, this is {type(value).__name__}")
    for number, item in enumerate(value, start=1):
        yield _object(item, f"{path}, row {number}")


def _csv(path: Path) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = next(reader)
        for fields in reader:
            if not fields:
                continue
            place = f"{path}, line {reader.line_num}"
            if len(fields) != len(header):
                raise DataError(f"{place}: {len(fields)} fields, the header has {len(header)}",
                                "Quote fields that hold commas or line breaks.")
            yield Row(dict(zip(header, fields, strict=True)), place)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: broken CSV: {error}") from None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        values = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from None
    for number, value in enumerate(values, start=1):
        yield Row(value, f"{path}, row {number}")


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
SUFFIXES = tuple(READERS)
