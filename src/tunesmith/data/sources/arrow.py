"""Rows from .parquet and .arrow, batch by batch, and from what `datasets.save_to_disk` wrote."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunesmith.data.rows import Row
from tunesmith.data.sources.inputs import empty, open_seekable
from tunesmith.data.sources.json_columns import decoder
from tunesmith.data.sources.reading import Reading, require_unique
from tunesmith.errors import DataError
from tunesmith.visible import on_one_line

#: Rows of a table that are Python's objects at once, at most, and about how many bytes they may be.
_BATCH_ROWS, _BATCH_BYTES = 1024, 16 << 20
#: A column of a parquet file is read in pieces of this size. What its rows may share is looked at where a
#: batch could become larger than this.
_PIECE_BYTES, _MOST_SHARED_BYTES = 1 << 20, 256 << 20
#: A parquet file is refused beyond so many bytes and so many times its own size.
_MOST_DECODED_BYTES, _MOST_EXPANSION = 1 << 30, 64
#: What is raised for a value that Python cannot hold.
_NOT_PYTHON = (ValueError, OverflowError, ArithmeticError, LookupError, RecursionError)
#: About what a row costs in memory besides its values.
_ROW_BYTES = 400


def read_parquet(path: Path, reading: Reading) -> Iterator[Row]:
    """The rows of a parquet file. Raises DataError."""
    with open_seekable(path) as opened:
        yield from _rows(_pulled(_parquet_batches(path, opened), path, "parquet"), path, opened, reading)


def read_arrow(path: Path, reading: Reading) -> Iterator[Row]:
    """The rows of an Arrow file, of either of its formats (a stream, or one that can be jumped in)."""
    with open_seekable(path) as opened:
        yield from _rows(_pulled(_arrow_batches(path, opened), path, "Arrow"), path, opened, reading)


def _pulled(batches: Iterator[Any], path: Path, kind: str) -> Iterator[Any]:
    """The batches. Raises DataError for whatever pyarrow makes of a damaged file."""
    import pyarrow

    while True:
        try:
            batch = next(batches, None)
        except DataError:
            raise
        except (pyarrow.ArrowException, OSError, ValueError, LookupError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{path}: not a readable {kind} file: {on_one_line(why)}",
                            "It is cut short, damaged, or something else under this name.") from None
        if batch is None:
            return
        yield batch


def _parquet_batches(path: Path, opened: Any) -> Iterator[Any]:
    """The batches of a parquet file, each of about _BATCH_BYTES. Raises DataError, and what pyarrow does."""
    import pyarrow.parquet

    # A column is read in pieces, rather than a whole row group of it at once.
    pieces = {"buffer_size": _PIECE_BYTES, "pre_buffer": False}
    size_bytes = os.fstat(opened.fileno()).st_size
    file = pyarrow.parquet.ParquetFile(opened, **pieces)
    metadata, schema = file.metadata, file.schema
    require_unique(file.schema_arrow.names, str(path))
    stated_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    _require_honest_size(path, max(stated_bytes, _ROW_BYTES * metadata.num_rows), size_bytes)
    leaves = [schema.column(i).path for i in range(len(schema))]
    as_stored = pyarrow.parquet.ParquetFile(opened, metadata=metadata, read_dictionary=leaves, **pieces)
    values = 0
    for number in range(metadata.num_row_groups):
        # What a damaged file says of its columns ends the process, unless a reader has checked it before.
        if next(as_stored.iter_batches(1, row_groups=[number]), None) is None:
            continue
        group = metadata.row_group(number)
        columns = [group.column(i) for i in range(group.num_columns)]
        values += sum(column.num_values for column in columns)
        _require_honest_size(path, 8 * values, size_bytes)
        row_bytes = group.total_byte_size // max(1, group.num_rows)
        # A text that many rows share is stored once, and may be as long as all that is stored.
        shared = sum(column.total_uncompressed_size for column in columns if column.has_dictionary_page)
        if shared * min(group.num_rows, _BATCH_ROWS) > _MOST_SHARED_BYTES:
            row_bytes = max(row_bytes, _longest_shared(as_stored, number) or shared)
        batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)))
        yield from file.iter_batches(batch_rows, row_groups=[number])


def _longest_shared(as_stored: Any, group: int) -> int:
    """The length of the longest value that is stored once for several rows; 0 where the first rows have
    none.
    """
    import pyarrow.compute

    batch = next(as_stored.iter_batches(_BATCH_ROWS, row_groups=[group]))
    lengths = [pyarrow.compute.max(pyarrow.compute.binary_length(values)).as_py() or 0
               for column in batch.columns for values in _dictionaries(column)]
    return 0 if not lengths or not all(lengths) else int(max(lengths))


def _dictionaries(array: Any) -> Iterator[Any]:
    """The values that an array stores once each, those of lists and objects in it included."""
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(array.type):
        if hasattr(array.dictionary, "type") and (types.is_string(array.dictionary.type)
                                                  or types.is_binary(array.dictionary.type)):
            yield array.dictionary
    elif types.is_struct(array.type):
        for index in range(array.type.num_fields):
            yield from _dictionaries(array.field(index))
    elif types.is_nested(array.type) and hasattr(array, "values"):
        yield from _dictionaries(array.values)


def _arrow_batches(path: Path, opened: Any) -> Iterator[Any]:
    """The batches of an Arrow file, each of about _BATCH_BYTES. Raises DataError, and what pyarrow does."""
    import pyarrow

    if not os.fstat(opened.fileno()).st_size:
        raise empty(path)
    # Of a batch in a mapped file only what is looked at is in memory, and that can be given back.
    mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    source = pyarrow.BufferReader(pyarrow.py_buffer(mapped))
    if mapped[:6] == b"ARROW1":
        file = pyarrow.ipc.open_file(source)
        batches, schema = map(file.get_batch, range(file.num_record_batches)), file.schema
    else:
        stream = pyarrow.ipc.open_stream(source)
        batches, schema = iter(stream), stream.schema
    require_unique(schema.names, str(path))
    yield from _small(batches, mapped)


def _small(batches: Iterator[Any], mapped: mmap.mmap) -> Iterator[Any]:
    """Batches of which each becomes few objects, whatever size they were written in. Raises ArrowInvalid."""
    looked_at_bytes = 0
    for batch in batches:
        batch.validate()
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * max(1, batch.num_rows) // max(1, batch.nbytes)))
        for start in range(0, batch.num_rows, rows):
            part = batch.slice(start, rows)
            part.validate(full=True)  # what a file says of its own buffers may lie outside of them
            yield part
            looked_at_bytes += part.nbytes
            if looked_at_bytes > _MOST_SHARED_BYTES // 4:
                mapped.madvise(mmap.MADV_DONTNEED)
                looked_at_bytes = 0


def _rows(batches: Iterator[Any], path: Path, opened: Any, reading: Reading) -> Iterator[Row]:
    number = decoded_bytes = 0
    size_bytes = os.fstat(opened.fileno()).st_size
    for batch in map(_plain, batches):
        decoded_bytes += batch.nbytes
        _require_honest_size(path, decoded_bytes, size_bytes)
        for value in _values(batch, path, number, reading):
            number += 1
            if value is not None:
                yield Row(value, f"{path}, row {number}", from_arrow=True)


def _values(batch: Any, path: Path, before: int, reading: Reading) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch as Python's objects; None for one that was skipped. before: rows before it."""
    decoders = {each.name: found for each in batch.schema if (found := decoder(each.type)) is not None}
    try:
        rows = batch.to_pylist(maps_as_pydicts="strict")
        for row in rows if decoders else ():
            row.update({name: decode(row[name]) for name, decode in decoders.items()})
    except _NOT_PYTHON:
        rows = None
    if rows is not None:
        yield from rows
        return
    for number in range(batch.num_rows):
        values: dict[str, Any] | None = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                value = column[number].as_py(maps_as_pydicts="strict")
                values[name] = decoders[name](value) if name in decoders else value  # type: ignore[index]
            except _NOT_PYTHON as error:
                reading.bad.reject(DataError(
                    f"{path}, row {before + number + 1}: the column {on_one_line(name)!r} holds what Python "
                    f"cannot: {str(error).splitlines()[0]}",
                    "Mend the value (a date beyond the year 9999, say), or write the column as text."))
                values = None
                break
        yield values


def _plain(batch: Any) -> Any:
    """The batch with each value written out, and bytes as text where all of a column are UTF-8."""
    import pyarrow

    types = pyarrow.types
    for index, each in enumerate(batch.schema):
        column = batch.column(index)
        if types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if types.is_binary(column.type) or types.is_large_binary(column.type):  # some writers do not say so
            with suppress(pyarrow.ArrowException):
                column = column.cast(pyarrow.large_string())
        if column is not batch.column(index):
            batch = batch.set_column(index, each.name, column)
    return batch


def _require_honest_size(path: Path, decoded_bytes: int, size_bytes: int) -> None:
    """Raise DataError for a file that decodes to far more than its size: made to fill the memory, say."""
    if decoded_bytes > _MOST_DECODED_BYTES and decoded_bytes > _MOST_EXPANSION * size_bytes:
        raise DataError(f"{path}: its {size_bytes:,} bytes become more than {decoded_bytes / 2**30:.1f} GiB: "
                        "one value is repeated very often, or the file is made to fill the memory",
                        "Take out what is repeated.")
