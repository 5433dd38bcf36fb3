"""Token rows in a file: written as Arrow record batches, memory-mapped, read row by row.

What several rows of one example share (prompt, answer) is kept once, with the first of them. A prompt whose
tokens begin its row is kept as their number alone.
"""

from __future__ import annotations

import mmap
import operator
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from tunesmith.data.token_rows import TokenRows
from tunesmith.data.tokenize import TokenRow

_COLUMNS = ("ids", "loss_mask", "back", "prompt_length", "prompt_ids", "prompt", "reference", "place",
            "largest", "loss_tokens")
_TYPES = (pa.list_(pa.int32()), pa.list_(pa.bool_()), pa.int32(), pa.int32(), pa.list_(pa.int32()),
          pa.binary(), pa.binary(), pa.binary(), pa.int32(), pa.int32())
#: back: by how many rows the row stands behind that with its prompt and its answer. prompt_length: the tokens
#: of the prompt where the row begins with them; -1 where `prompt_ids` has them.
SCHEMA = pa.schema(list(zip(_COLUMNS, _TYPES, strict=True)))
#: After so many rows were read, what the system has mapped of the file is given back: it counts as this
#: process's memory, though it is the disk's cache. A row maps some 64 KiB around each of its columns.
_GIVE_BACK_ROWS = 128


def batch_of(rows: Sequence[TokenRow]) -> pa.RecordBatch:
    """Token rows as a record batch; rows of one example stand one after another."""
    back, lengths, prompt_ids, prompts, references = [], [], [], [], []
    carrier = 0
    for number, row in enumerate(rows):
        first = rows[carrier]
        shared = number > 0 and (row.prompt is first.prompt and row.reference is first.reference
                                 and row.prompt_ids is first.prompt_ids)
        carrier = carrier if shared else number
        back.append(number - carrier)
        begins = not shared and row.ids[:len(row.prompt_ids)] == row.prompt_ids
        lengths.append(len(row.prompt_ids) if begins else -1)
        prompt_ids.append([] if shared or begins else row.prompt_ids)
        prompts.append(b"" if shared else _bytes(row.prompt))
        references.append(b"" if shared else _bytes(row.reference))
    return pa.RecordBatch.from_arrays(
        [_lists([row.ids for row in rows], np.int32), _lists([row.loss_mask for row in rows], np.bool_),
         pa.array(back, pa.int32()), pa.array(lengths, pa.int32()), _lists(prompt_ids, np.int32),
         pa.array(prompts, pa.binary()), pa.array(references, pa.binary()),
         pa.array([_bytes(row.place) for row in rows], pa.binary()),
         pa.array([max(row.ids, default=0) for row in rows], pa.int32()),
         pa.array([row.loss_tokens for row in rows], pa.int32())], schema=SCHEMA)


def _bytes(text: str) -> bytes:
    """Also of names of files that are no text."""
    return text.encode("utf-8", "surrogatepass")


def _lists(lists: Sequence[Sequence[Any]], kind: Any) -> pa.ListArray:
    offsets = np.zeros(len(lists) + 1, dtype=np.int32)
    np.cumsum([len(each) for each in lists], out=offsets[1:])
    values = np.fromiter(chain.from_iterable(lists), dtype=kind, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


class _Map:
    """A memory-mapped file of record batches. Raises OSError, or ArrowException for what is no such file."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pa.ipc.open_file(pa.py_buffer(self._map))
        if reader.schema != SCHEMA:
            raise pa.ArrowInvalid("its columns are not those of token rows")
        self.batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        counts = [batch.num_rows for batch in self.batches]
        self.starts = np.cumsum([0, *counts])
        self._read = 0

    def numbers(self, column: str) -> np.ndarray:
        """A column of numbers, of all rows."""
        place = _COLUMNS.index(column)
        parts = [batch.column(place).to_numpy() for batch in self.batches]
        return np.concatenate([np.empty(0, dtype=np.int32), *parts])

    def lengths(self) -> np.ndarray:
        """The tokens of each row."""
        parts = [np.diff(_offsets(batch.column(0))) for batch in self.batches]
        return np.concatenate([np.empty(0, dtype=np.int32), *parts])

    def row(self, index: int) -> TokenRow:
        """One row."""
        self._read += 1
        if self._read % _GIVE_BACK_ROWS == 0:
            self.give_back()
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        batch, at = self.batches[number], index - int(self.starts[number])
        columns = dict(zip(_COLUMNS, batch.columns, strict=True))
        carrier = at - columns["back"][at].as_py()
        ids = _ints(columns["ids"], at)
        prompt_length = columns["prompt_length"][carrier].as_py()
        if prompt_length < 0:
            prompt_ids = _ints(columns["prompt_ids"], carrier)
        else:
            prompt_ids = (ids if carrier == at else _ints(columns["ids"], carrier))[:prompt_length]
        return TokenRow(ids, _bits(columns["loss_mask"], at), prompt_ids, _text(columns["prompt"], carrier),
                        _text(columns["reference"], carrier), _text(columns["place"], at))

    def give_back(self) -> None:
        """Unmap what was read; it is mapped again when it is read again."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _offsets(column: Any) -> np.ndarray:
    return np.frombuffer(column.buffers()[1], dtype=np.int32, count=len(column) + 1)


def _span(column: Any, at: int) -> tuple[int, int]:
    start, end = np.frombuffer(column.buffers()[1], dtype=np.int32, count=2, offset=4 * at)
    return int(start), int(end)


def _ints(column: Any, at: int) -> list[int]:
    start, end = _span(column, at)
    if start == end:
        return []
    values = np.frombuffer(column.buffers()[3], dtype=np.int32, count=end - start, offset=4 * start)
    return list(values.tolist())


def _bits(column: Any, at: int) -> list[bool]:
    start, end = _span(column, at)
    if start == end:
        return []
    first = start // 8
    packed = np.frombuffer(column.buffers()[3], dtype=np.uint8, count=(end + 7) // 8 - first, offset=first)
    bits = np.unpackbits(packed, bitorder="little")[start - 8 * first:end - 8 * first]
    return list(bits.astype(np.bool_).tolist())


def _text(column: Any, at: int) -> str:
    return str(column[at].as_py().decode("utf-8", "surrogatepass"))


class TokenTable(TokenRows):
    """Token rows of a file, or some of them in an order of their own; none is in memory until it is asked
    for.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError, or ArrowException for a file that is none of token rows."""
        self._map = _Map(path)
        self._numbers = {"lengths": self._map.lengths(), "loss_tokens": self._map.numbers("loss_tokens"),
                         "largest": self._map.numbers("largest")}
        self._indices = np.arange(int(self._map.starts[-1]), dtype=np.int64)
        self._map.give_back()

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each row."""
        return self._numbers["lengths"][self._indices]

    @property
    def loss_tokens(self) -> np.ndarray:
        """How many tokens of each row bear loss."""
        return self._numbers["loss_tokens"][self._indices]

    @property
    def largest(self) -> np.ndarray:
        """The largest token of each row."""
        return self._numbers["largest"][self._indices]

    def take(self, indices: np.ndarray) -> TokenTable:
        """The rows of these numbers, in this order, not copied."""
        taken: TokenTable = object.__new__(TokenTable)
        taken._map, taken._numbers, taken._indices = self._map, self._numbers, self._indices[indices]
        return taken

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> TokenTable: ...
    def __getitem__(self, index: int | slice) -> TokenRow | TokenTable:
        """A row, or some rows that are not copied."""
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._map.row(int(self._indices[operator.index(index)]))
