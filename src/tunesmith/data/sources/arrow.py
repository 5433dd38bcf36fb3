"""Rows from .parquet and .arrow, batch by batch, and from what `datasets.save_to_disk` wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.rows import Row
from tunesmith.data.sources.inputs import compression_of, open_seekable
from tunesmith.data.sources.reading import Reading, require_unique
from tunesmith.errors import DataError
from tunesmith.visible import on_one_line

#: Rows of a table that are Python's objects at once, at most, and about how many bytes they may be.
_BATCH_ROWS, _BATCH_BYTES = 1024, 16 << 20
#: A parquet file is refused beyond so many bytes and so many times its own size.
_MOST_DECODED_BYTES, _MOST_EXPANSION = 1 << 30, 64
#: About what a row costs in memory besides its values.
_ROW_BYTES = 400


def read_parquet(path: Path, reading: Reading) -> Iterator[Row]:
    """The rows of a parquet file. Raises DataError."""
    import pyarrow
    import pyarrow.parquet

    with open_seekable(path) as opened:
        size_bytes = opened.seek(0, 2)
        opened.seek(0)
        try:
            file = pyarrow.parquet.ParquetFile(opened)
            schema, rows = file.schema_arrow, file.metadata.num_rows
            require_unique(schema.names, str(path))
            _require_honest_size(path, _ROW_BYTES * rows, size_bytes)
            stated = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
            _require_honest_size(path, stated, size_bytes)
            text = [each.name for each in schema
                    if pyarrow.types.is_string(each.type) or pyarrow.types.is_binary(each.type)]
            # Read again with these columns as dictionaries, so that a value that is repeated is held once.
            file = pyarrow.parquet.ParquetFile(opened, read_dictionary=text, buffer_size=1 << 20)
            batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * max(1, rows) // max(1, stated)))
            yield from _checked(file.iter_batches(batch_rows), path, size_bytes, reading)
        except (pyarrow.ArrowException, OSError) as error:
            raise _broken(path, "parquet", error) from None


def read_arrow(path: Path, reading: Reading) -> Iterator[Row]:
    """The rows of an Arrow file, of either of its formats (a stream, or one that can be jumped in)."""
    import pyarrow

    with open_seekable(path) as opened:
        size_bytes = opened.seek(0, 2)
        opened.seek(0)
        try:
            is_file = opened.read(6) == b"ARROW1"
            opened.seek(0)
            # A batch of a mapped file is in memory only as far as it is looked at.
            source = opened if compression_of(path) else pyarrow.memory_map(os.fsencode(path))
            if is_file:
                file = pyarrow.ipc.open_file(source)
                batches = (file.get_batch(i) for i in range(file.num_record_batches))
                schema = file.schema
            else:
                stream = pyarrow.ipc.open_stream(source)
                batches, schema = iter(stream), stream.schema
            require_unique(schema.names, str(path))
            yield from _checked(_small(batches), path, size_bytes, reading)
        except (pyarrow.ArrowException, OSError) as error:
            raise _broken(path, "Arrow", error) from None


def _broken(path: Path, kind: str, error: BaseException) -> DataError:
    return DataError(f"{path}: not a readable {kind} file: "
                     f"{(str(error).splitlines() or ['no reason given'])[0]}",
                     "It is cut short, damaged, or something else under this name.")


def _small(batches: Iterator[Any]) -> Iterator[Any]:
    """Batches of which each becomes few objects, whatever size they were written in. Raises ArrowInvalid."""
    for batch in batches:
        batch.validate(full=True)  # what a file says of its own buffers may lie outside of them
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * max(1, batch.num_rows) // max(1, batch.nbytes)))
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)


def _checked(batches: Iterator[Any], path: Path, size_bytes: int, reading: Reading) -> Iterator[Row]:
    number = decoded_bytes = 0
    for batch in batches:
        decoded_bytes += sum(map(_decoded_bytes, batch.columns))
        _require_honest_size(path, decoded_bytes, size_bytes)
        for value in _values(batch, path, number, reading):
            number += 1
            if value is not None:
                yield Row(value, f"{path}, row {number}", from_arrow=True)


def _values(batch: Any, path: Path, before: int, reading: Reading) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch as Python's objects; None for one that was skipped. before: rows before it."""
    batch = _with_text(batch)
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError, ArithmeticError):
        rows = None
    if rows is not None:
        yield from rows
        return
    for number in range(batch.num_rows):
        values: dict[str, Any] | None = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                values[name] = column[number].as_py()  # type: ignore[index]
            except (ValueError, OverflowError, ArithmeticError) as error:
                reading.bad.reject(DataError(
                    f"{path}, row {before + number + 1}: the column {on_one_line(name)!r} holds what Python "
                    f"cannot: {str(error).splitlines()[0]}",
                    "Mend the value (a date beyond the year 9999, say), or write the column as text."))
                values = None
                break
        yield values


def _with_text(batch: Any) -> Any:
    """The batch with columns of bytes as text, where all of them are UTF-8: some writers do not say so."""
    import pyarrow

    for index, each in enumerate(batch.schema):
        kind = each.type.value_type if pyarrow.types.is_dictionary(each.type) else each.type
        if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
            try:
                text = batch.column(index).cast(pyarrow.large_string())
            except pyarrow.ArrowException:
                continue
            batch = batch.set_column(index, each.name, text)
    return batch


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


def saved_files(folder: Path) -> list[Path]:
    """The files of one data set that `datasets.save_to_disk` wrote, in their order. Raises DataError."""
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        names = [str(each["filename"]) for each in state["_data_files"]]
        reordered = bool(state.get("_indices_data_files"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path}: not the state of a data set that save_to_disk wrote",
                        "Save the data set again, or name its .arrow files.") from None
    if reordered:
        raise DataError(f"{path}: saved by an old version of datasets, with its order in a file of its own",
                        "Save it again: load_from_disk(...).flatten_indices().save_to_disk(...).")
    if bad := next((name for name in names if Path(name).name != name), None):
        raise DataError(f"{path}: names a file outside of its folder: {on_one_line(bad)}")
    return [folder / name for name in names]


def saved_splits(folder: Path) -> list[str]:
    """The names of the splits of a DatasetDict that `save_to_disk` wrote. Raises DataError."""
    path = folder / "dataset_dict.json"
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["splits"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        names = None
    if not isinstance(names,
                      list) or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise DataError(f"{path}: not the list of splits that save_to_disk writes",
                        "Save the data set again.")
    return names
