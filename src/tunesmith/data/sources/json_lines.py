"""Rows from JSON lines: one object a line (.jsonl, .ndjson, and many a .json)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.rows import Row
from tunesmith.data.sources.inputs import LONGEST_ROW, Text, empty, open_text
from tunesmith.data.sources.json_document import read_document
from tunesmith.data.sources.reading import Reading, reason, row_of, unique_keys
from tunesmith.errors import DataError
from tunesmith.visible import on_one_line


def read_jsonl(path: Path, reading: Reading) -> Iterator[Row]:
    """The rows of a .jsonl file; one that is a list, or objects over several lines, is read as what it is."""
    first, second = _first_lines(path)
    whole = first.startswith("[") or "{" in (first.strip(), second.strip())
    return read_document(path, reading) if whole else _read_lines(path, reading)


def read_json(path: Path, reading: Reading) -> Iterator[Row]:
    """The rows of a .json file: a document, or JSON lines."""
    first, second = _first_lines(path)
    lines = first.startswith("{") and bool(second) and second.strip() != "{" and _is_whole(first)
    return _read_lines(path, reading) if lines else read_document(path, reading)


def _first_lines(path: Path) -> tuple[str, str]:
    with open_text(path) as text:
        return _first_line(text), _first_line(text)


def _first_line(text: Text) -> str:
    """The first line that is not blank, without blanks at its beginning; empty at the end of the file."""
    while line := text.line():
        if line := line.lstrip():
            return line
    return ""


def _is_whole(line: str) -> bool:
    if len(line) >= LONGEST_ROW:
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _read_lines(path: Path, reading: Reading) -> Iterator[Row]:
    # Lines end at \n alone: a JSON string may hold U+2028 and the like, at which str.splitlines would cut.
    number = blank = 0
    with open_text(path) as text:
        while line := text.line():
            number += 1
            if len(line) >= LONGEST_ROW and not line.endswith("\n"):
                reading.bad.reject(too_long(path, number))
                while (rest := text.line()) and not rest.endswith("\n"):
                    pass
                continue
            if not line.strip():
                blank += 1
                continue
            try:
                row = row_of(_value(text, line, number), f"{path}, line {number}")
            except DataError as error:
                reading.bad.reject(error)
            else:
                yield row
    if number == blank:
        raise empty(path)


def too_long(path: Path, line: int) -> DataError:
    """The error for a row that is longer than any may be."""
    return DataError(f"{path}, line {line}: longer than {LONGEST_ROW >> 20} Mi characters, so it is no row",
                     "Write each row on a line of its own.")


def _value(text: Text, line: str, number: int) -> Any:
    if damage := text.damage(line, number):
        raise damage
    try:
        return json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        why = (f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError)
               else reason(error))
        raise DataError(f"{text.path}, line {number}: broken JSON: {why}",
                        f"The line begins: {on_one_line(line[:60])}") from None
