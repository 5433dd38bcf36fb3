"""Rows from an .xlsx spreadsheet, through openpyxl (the extra `xlsx`): the first row that is not empty is the
header.
"""

from __future__ import annotations

import datetime
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.data.rows import Row
from tunesmith.data.sources.inputs import open_seekable
from tunesmith.data.sources.reading import Reading, require_unique
from tunesmith.errors import DataError, EnvironmentFault, TunesmithError
from tunesmith.visible import on_one_line

#: A file is refused beyond so many bytes of XML and so many times its own size.
_MOST_UNPACKED_BYTES, _MOST_EXPANSION = 1 << 30, 200


def read_xlsx(path: Path, reading: Reading) -> Iterator[Row]:
    """The rows of a sheet: numbers as numbers, dates as text (2026-03-01), formulas as their last results."""
    with open_seekable(path) as file, _books(path, file) as (values, formulas):
        name = _sheet(path, values, reading.name)
        header: list[str] | None = None
        pairs = zip(_rows(path, values[name]), _rows(path, formulas[name]), strict=True)
        for number, (cells, written) in enumerate(pairs, start=1):
            place = f"{path}, sheet {on_one_line(name, 40)}, row {number}"
            try:
                fields = [_value(cell, formula, place) for cell, formula in zip(cells, written, strict=True)]
                if all(field is None for field in fields):
                    continue
                if header is None:
                    header = ["" if field is None else str(field) for field in fields]
                    require_unique([each for each in header if each], place)
                    continue
                row = _row(header, fields, place)
            except DataError as error:
                if header is None:
                    raise
                reading.bad.reject(error)
            else:
                yield row


@contextmanager
def _books(path: Path, file: Any) -> Iterator[tuple[Any, Any]]:
    """The workbook twice: with the results of its formulas, and with the formulas. Raises DataError."""
    try:
        import openpyxl
    except ImportError:
        raise EnvironmentFault(f"{path}: spreadsheets are read by openpyxl, which is not installed",
                               "pip install 'tunesmith[xlsx]'") from None
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked, packed = sum(each.file_size for each in archive.infolist()), file.seek(0, 2)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from None
    if unpacked > _MOST_UNPACKED_BYTES and unpacked > _MOST_EXPANSION * packed:
        raise DataError(f"{path}: its {packed:,} bytes become {unpacked / 2**30:.1f} GiB",
                        "It is made to fill the memory.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of styles and extensions that openpyxl does not know
        try:
            books = [openpyxl.load_workbook(file, read_only=True, data_only=data_only)
                     for data_only in (True, False)]
        except TunesmithError:  # a signal
            raise
        except Exception as error:  # openpyxl lets through whatever its parsers of XML raise
            raise _unreadable(path, error) from None
        yield books[0], books[1]


def _unreadable(path: Path, error: Exception) -> DataError:
    why = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"{path}: not a readable .xlsx file: {why}",
                     "Save it again as .xlsx in the program that wrote it.")


def _rows(path: Path, sheet: Any, most: int | None = None) -> Iterator[tuple[Any, ...]]:
    """The cells of each row of a sheet. Raises DataError."""
    sheet.reset_dimensions()  # what a file says of them may be wrong, and every row would be filled up to it
    rows = sheet.iter_rows(max_row=most)
    while True:
        try:
            row = next(rows, None)
        except TunesmithError:  # a signal
            raise
        except Exception as error:  # as when it is opened
            raise _unreadable(path, error) from None
        if row is None:
            return
        yield row


def _sheet(path: Path, book: Any, wanted: str | None) -> str:
    """The sheet that was asked for, or the only one that is not empty. Raises DataError."""
    names = [sheet.title for sheet in book.worksheets]
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"{path} has no sheet {wanted!r}",
                            f"It has {', '.join(map(on_one_line, names))}.", setting="data.name")
        return wanted
    filled = [sheet.title for sheet in book.worksheets
              if any(cell.value is not None for row in _rows(path, sheet, most=20) for cell in row)]
    if not filled:
        raise DataError(f"{path}: the spreadsheet is empty")
    if len(filled) > 1:
        raise DataError(f"{path} has {len(filled)} sheets: {', '.join(map(on_one_line, filled))}",
                        f"Say which one: --set data.name='{on_one_line(filled[0])}'", setting="data.name")
    return str(filled[0])


def _value(cell: Any, formula: Any, place: str) -> Any:
    value = cell.value
    if formula.data_type == "f" and value is None:
        raise DataError(f"{place}: the cell {formula.coordinate} has a formula without a result",
                        "Open the file in a spreadsheet program and save it, or save it as .csv.")
    if cell.data_type == "e":
        raise DataError(f"{place}: the cell {cell.coordinate} is an error, {value}",
                        "Mend or empty the cell.")
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(sep=" ")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, datetime.timedelta) else value


def _row(header: list[str], fields: list[Any], place: str) -> Row:
    beyond = [field for field in fields[len(header):] if field is not None]
    unnamed = [field for name, field in zip(header, fields, strict=False) if not name and field is not None]
    if beyond or unnamed:
        raise DataError(f"{place}: {len(beyond) + len(unnamed)} cells in columns without a name: they would "
                        "be lost",
                        "Give each column a name in the header.")
    padded = [*fields, *[None] * (len(header) - len(fields))]
    return Row({name: field for name, field in zip(header, padded, strict=False) if name}, place)
