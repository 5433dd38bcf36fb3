"""Files of rows for the tests of sources."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from tunesmith.data.sources import open_sources
from tunesmith.data.sources.source import Source


def zstd(content: bytes) -> bytes:
    stream = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(stream, "zstd") as packed:
        packed.write(content)
    return bytes(stream.getvalue().to_pybytes())


PACKED = {"": bytes, ".gz": gzip.compress, ".zst": zstd, ".GZ": gzip.compress}


def put(folder: Path, name: str, content: str | bytes) -> Path:
    """A file, with the folders above it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def without_permission(path: Path) -> None:
    """Nobody may read it; skips the test for a user who may all the same."""
    mode = path.stat().st_mode
    path.chmod(0)
    if os.access(path, os.R_OK):
        path.chmod(mode)
        pytest.skip("this user reads what nobody may")


def opened(source: Any, split: str = "train", **how: Any) -> Source:
    return open_sources([str(each) for each in source] if isinstance(source, list) else str(source), split,
                        "data.source", **how)


def values(source: Any, split: str = "train", **how: Any) -> list[dict[str, Any]]:
    return [row.values for row in opened(source, split, **how).rows()]


def parquet(table: Any) -> bytes:
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(table if isinstance(table, pyarrow.Table)
                                else pyarrow.Table.from_pylist(table), stream)
    return stream.getvalue()


def arrow(rows: list[dict[str, Any]], file: bool) -> bytes:
    table, stream = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with (pyarrow.ipc.new_file if file else pyarrow.ipc.new_stream)(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def xlsx(*sheets: list[list[Any]]) -> bytes:
    import openpyxl

    book, stream = openpyxl.Workbook(), io.BytesIO()
    book.remove(book.active)
    for number, rows in enumerate(sheets, start=1):
        sheet = book.create_sheet(f"Sheet{number}")
        for row in rows:
            sheet.append(row)
    book.save(stream)
    return stream.getvalue()
