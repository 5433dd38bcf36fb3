"""Rows from .jsonl, .json, .csv and .parquet files; each error names the file and the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.visible import on_one_line

#: Rows of a parquet file read at once; it is refused beyond so many bytes and so many times its own size.
_PARQUET_ROWS, _MOST_DECODED_BYTES, _MOST_EXPANSION = 1024, 1 << 30, 64
#: About what a row costs in memory besides its values.
_ROW_BYTES = 400
#: CSV fields may be as long as this; the module's own limit is 131,072 characters.
_LONGEST_FIELD = 64 << 20


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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys all differ: of two values under one key, one would be lost."""
    columns = dict(pairs)
    if len(columns) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {on_one_line(twice)!r} stands twice in one object")
    return columns


def _reason(error: Exception) -> str:
    return "nested too deep to read" if isinstance(error, RecursionError) else str(error).splitlines()[0]


def _jsonl(path: Path) -> Iterator[Row]:
    # Split at \n alone: a JSON string may hold U+2028 and the like, at which str.splitlines would cut.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            value = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            reason = (f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError)
                      else _reason(error))
            raise DataError(f"{place}: broken JSON: {reason}",
                            f"The line begins: {on_one_line(line[:60])}") from None
        yield _object(value, place)


def _json(path: Path) -> Iterator[Row]:
    try:
        value = json.loads(_text(path), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: broken JSON: {error.msg}, column {error.colno}",
                        "A .json file is one list of objects; one object a line is .jsonl.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: broken JSON: {_reason(error)}") from None
    if not isinstance(value, list):
        raise DataError(f"{path}: a .json file is one list of objects, this is {type(value).__name__}")
    for number, item in enumerate(value, start=1):
        yield _object(item, f"{path}, row {number}")


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = next(reader)
        if twice := next((name for name in header if header.count(name) > 1), None):
            places = [str(i) for i, name in enumerate(header, start=1) if name == twice]
            raise DataError(f"{path}, line 1: the column {on_one_line(twice)!r} stands in places "
                            f"{', '.join(places)}: all but one would be lost",
                            "Give each column a name of its own.")
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

    number, decoded_bytes, size_bytes = 0, 0, path.stat().st_size
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"{path}: the column {on_one_line(twice)!r} stands there twice: "
                            "all but one would be lost", "Give each column a name of its own.")
        _require_honest_size(path, _ROW_BYTES * file.metadata.num_rows, size_bytes)
        stated = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        _require_honest_size(path, stated, size_bytes)
        text = [field.name for field in file.schema_arrow
                if pyarrow.types.is_string(field.type) or pyarrow.types.is_binary(field.type)]
        for batch in pyarrow.parquet.ParquetFile(path, read_dictionary=text).iter_batches(_PARQUET_ROWS):
            decoded_bytes += sum(map(_decoded_bytes, batch.columns))
            _require_honest_size(path, decoded_bytes, size_bytes)
            for value in _values(batch, path, number):
                number += 1
                yield Row(value, f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from None


def _values(batch: Any, path: Path, before: int) -> list[dict[str, Any]]:
    """The rows of a batch as Python's objects. before: how many rows came before it. Raises DataError."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError, ArithmeticError, UnicodeDecodeError):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            for row, value in enumerate(column, start=before + 1):
                try:
                    value.as_py()
                except (ValueError, OverflowError, ArithmeticError) as error:
                    raise DataError(f"{path}, row {row}: the column {on_one_line(name)!r} holds what "
                                    f"Python cannot: {str(error).splitlines()[0]}",
                                    "Mend the value (a date beyond the year 9999, "
                                    "say), or write the column as text.") from None
        raise


def _decoded_bytes(column: Any) -> int:
    """How large a column is once every value is written out."""
    import pyarrow.compute

    if not hasattr(column, "dictionary"):
        return int(column.nbytes)
    lengths = pyarrow.compute.binary_length(column.dictionary)
    return int(pyarrow.compute.sum(lengths.take(column.indices)).as_py() or 0)


def _require_honest_size(path: Path, decoded_bytes: int, size_bytes: int) -> None:
    """Raise DataError for a file that decodes to far more than its size: made to fill the memory, say."""
    if decoded_bytes > _MOST_DECODED_BYTES and decoded_bytes > _MOST_EXPANSION * size_bytes:
        raise DataError(f"{path}: its {size_bytes:,} bytes become more than {decoded_bytes / 2**30:.1f} GiB: "
                        "one value is repeated very often, or the file is made to fill the memory",
                        "Take out what is repeated.")


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
SUFFIXES = tuple(READERS)
