"""A row from a .txt file: the whole file is one document, in a column named text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunesmith.data.rows import Row
from tunesmith.data.sources.inputs import LONGEST_ROW, empty, open_text
from tunesmith.data.sources.reading import Reading
from tunesmith.errors import DataError


def read_txt(path: Path, reading: Reading) -> Iterator[Row]:
    """The document. Line ends are \\n, whatever the file has. Raises DataError."""
    with open_text(path, newline=None) as text:
        document = text.read(LONGEST_ROW + 1)
        if not document.strip():
            raise empty(path)
        if len(document) > LONGEST_ROW:
            raise DataError(f"{path}: a .txt file is one document, a row, and this is longer than "
                            f"{LONGEST_ROW >> 20} Mi characters",
                            "Write each document to a file of its own, or one "
                            'a line of a .jsonl file: {"text": "..."}')
        for number, line in enumerate(document.split("\n"), start=1):
            if damage := text.damage(line, number):
                reading.bad.reject(damage)
                return
    yield Row({"text": document}, str(path))
