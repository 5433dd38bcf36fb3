"""The cache of token rows: a folder an entry, named by what its rows are made of, whole or not there.

An entry is made in a folder of a temporary name, which its maker holds locked, and renamed when all of it is
on the disk. So nothing half-written is ever read, the next maker can tell the leftovers of dead processes
from the work of living ones, and of two that make the same entry the first one's is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from tunesmith.data.store import SCHEMA, TokenTable
from tunesmith.errors import DiskError, Kind
from tunesmith.os_errors import explained_os_error
from tunesmith.paths import expanded
from tunesmith.rundir.files import TEMPORARY_PREFIX, disk_errors, sync_folder, write_synced

_ROWS, _EXAMPLES, _ABOUT = "rows.arrow", "examples.npy", "about.json"
#: So much of the end of a file is hashed when an entry is opened: Arrow says there where everything is.
_TAIL_BYTES = 64 << 10
#: What is kept of each example. hash: of its content. rows: how many it became. truncated, dropped: how many
#: rows were cut, or left out, for their length. special: whether its text holds that of a special token.
#: remarks: the place of what is to be said of it in `Entry.remarks`.
EXAMPLE = np.dtype([("hash", "V32"), ("rows", "<i4"), ("truncated", "<i4"), ("dropped", "<i4"),
                    ("special", "?"), ("remarks", "<i4")])


def cache_folder() -> Path:
    """Where token rows are kept: TUNESMITH_CACHE, else the user's own cache folder."""
    if own := os.environ.get("TUNESMITH_CACHE"):
        return expanded(own) / "tokens"
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tunesmith" / "tokens"


class Damaged(Exception):
    """An entry is there, and is not what was written; the words say what is wrong."""


@dataclass
class Entry:
    """The token rows of one source, and what is to be said of its examples.

    examples: an EXAMPLE each, in the source's order. remarks: as JSON, each different one once. written: how
    often a column that is no text was written, by column and form. said: what the source told while it was
    read. skipped: how many bad rows were skipped.
    """

    path: Path
    rows: TokenTable
    examples: np.ndarray
    remarks: list[str]
    written: dict[tuple[str, str], int]
    said: list[str]
    skipped: int

    @property
    def bytes(self) -> int:
        """How much of the disk it takes."""
        return sum(each.stat().st_size for each in self.path.iterdir())


class _Hashed(io.RawIOBase):
    """A new file that is hashed as it is written."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """As of any raw stream."""
        count = os.write(self._descriptor, data)
        self.hash.update(memoryview(data)[:count])
        return count

    def close(self) -> None:
        """With all of it on the disk."""
        if not self.closed:
            try:
                os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)
                super().close()


@dataclass
class EntryWriter:
    """Receives what an entry is made of; see `new_entry`."""

    folder: Path
    _file: _Hashed = field(init=False)
    _buffered: io.BufferedWriter = field(init=False)
    _writer: Any = field(init=False)
    _examples: list[bytes] = field(default_factory=list)
    _remarks: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._file = _Hashed(self.folder / _ROWS)
        self._buffered = io.BufferedWriter(self._file, 1 << 20)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._buffered, mode="w"), SCHEMA)

    def add(self, rows: pa.RecordBatch, examples: np.ndarray, remarks: list[str]) -> None:
        """The rows of some examples. examples: their `remarks` are places in the list that is given here."""
        with _explained(self.folder.parent):
            if rows.num_rows:
                self._writer.write_batch(rows)
        places = [self._remarks.setdefault(text, len(self._remarks)) for text in remarks]
        examples = examples.copy()
        examples["remarks"] = np.array(places, dtype=np.int32)[examples["remarks"]]
        self._examples.append(examples.tobytes())

    def finish(self, about: dict[str, Any]) -> None:
        """Write what is left: the examples, and the seal over everything."""
        with _explained(self.folder.parent):
            self._finish(about)

    def _finish(self, about: dict[str, Any]) -> None:
        self._writer.close()
        self._buffered.flush()
        self._buffered.close()
        examples = b"".join(self._examples)
        write_synced(self.folder / _EXAMPLES, examples)
        about = {**about, "remarks": list(self._remarks), "files": {
            _ROWS: self._file.hash.hexdigest(), _EXAMPLES: hashlib.sha256(examples).hexdigest()}}
        about["tails"] = {name: list(_tail(self.folder / name)) for name in about["files"]}
        write_synced(self.folder / _ABOUT, json.dumps({**about, "seal": _seal(about)}).encode())
        sync_folder(self.folder)

    def close(self) -> None:
        """Let go of the file, whatever state it is in."""
        with contextlib.suppress(OSError, ValueError):
            self._file.close()


def _seal(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _tail(path: Path) -> tuple[int, str]:
    """(size, hash of the end) of a file."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        return size, hashlib.sha256(file.read()).hexdigest()


@contextlib.contextmanager
def new_entry(key: str) -> Iterator[EntryWriter]:
    """Make the entry `key`: what was given to the writer is there, whole, when the block ends, unless it was
    put there meanwhile. A damaged one is replaced.

    Raises DiskError. An error or a signal in the block leaves nothing.
    """
    place = cache_folder()
    with contextlib.ExitStack() as undo:
        with _explained(place):
            place.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(place)
            folder = _locked_folder(place, key, undo)
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            writer = EntryWriter(folder)
        undo.callback(writer.close)
        yield writer
        with _explained(place):
            _put_in_place(folder, place / key)


def _locked_folder(place: Path, key: str, undo: contextlib.ExitStack) -> Path:
    """A new folder that is locked until `undo`."""
    while True:
        folder = place / f"{TEMPORARY_PREFIX}{key}-{uuid.uuid4().hex}"
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists():  # between the two, another maker may have taken it for a leftover
                undo.callback(os.close, lock)
                return folder
        except BlockingIOError:
            pass
        os.close(lock)


def _remove_leftovers(place: Path) -> None:
    """Remove what dead processes left: a living one holds its folder locked."""
    for folder in place.glob(TEMPORARY_PREFIX + "*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(lock)


def _put_in_place(folder: Path, out: Path) -> None:
    """Rename a finished folder; what another process put there first is kept, if it is whole."""
    for _ in range(3):
        try:
            os.rename(folder, out)
            sync_folder(out.parent)
            return
        except OSError:
            if not out.is_dir():
                raise
        try:
            open_entry(out.name)
            return
        except Damaged:
            with contextlib.suppress(FileNotFoundError):
                old = out.with_name(f"{TEMPORARY_PREFIX}{out.name}-{uuid.uuid4().hex}")
                os.rename(out, old)
                shutil.rmtree(old, ignore_errors=True)
    raise DiskError(f"{out}: cannot be replaced", "Remove this folder, then run the same command again.")


def open_entry(key: str) -> Entry | None:
    """The entry `key`; None where there is none. Raises Damaged, or DiskError where it cannot be read."""
    folder = cache_folder() / key
    with _explained(folder):
        if not folder.is_dir():
            return None
        try:
            return _opened(folder)
        except FileNotFoundError as error:
            raise Damaged(f"{Path(str(error.filename)).name} is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise Damaged((str(error).splitlines() or [type(error).__name__])[0]) from None


def _opened(folder: Path) -> Entry:
    about = json.loads((folder / _ABOUT).read_bytes())
    if about.pop("seal") != _seal(about):
        raise Damaged(f"{_ABOUT} is not as it was written")
    for name, tail in about["tails"].items():
        if list(_tail(folder / name)) != tail:
            raise Damaged(f"{name} is not as it was written")
    rows = TokenTable(folder / _ROWS)
    examples = np.fromfile(folder / _EXAMPLES, dtype=EXAMPLE)
    if int(examples["rows"].sum()) != len(rows):
        raise Damaged("its examples and its rows are not of one data set")
    written = {(column, form): count for column, form, count in about["written"]}
    return Entry(folder, rows, examples, about["remarks"], written, about["said"], about["skipped"])


@contextlib.contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Failures of the disk as errors that name the cache."""
    try:
        with disk_errors(place):
            try:
                yield
            except pa.ArrowException as error:  # which hides what the system said in its words
                if isinstance(error, OSError) and (explained := explained_os_error(error, place)):
                    raise explained from None
                raise
    except DiskError as error:
        what = ("It holds the tokens of large data sets: make room there"
                if error.kind is Kind.DISK_FULL else "It holds the tokens of large data sets")
        raise error.reword(hint=f"{what}, or set TUNESMITH_CACHE to another folder.") from None
