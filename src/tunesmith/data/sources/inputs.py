"""A file of rows as bytes or as text: decompressed, decoded, in bounded memory; what is wrong names the
file.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.data.sources.encodings import advice, by_mark, iconv, without_mark
from tunesmith.errors import DataError, TunesmithError
from tunesmith.os_errors import explained_os_error

#: No row is longer than this [characters]: it would be millions of tokens.
LONGEST_ROW = 32 << 20
COMPRESSIONS = (".gz", ".zst")
#: A compressed file is refused beyond so many bytes and so many times its own size: it is made to fill the
#: disk, the memory or the day.
_MOST_UNPACKED_BYTES, _MOST_EXPANSION = 1 << 30, 200
_CHUNK, _SAMPLE_BYTES = 1 << 16, 1 << 18
_POINTER_SIZE = re.compile(rb"\nsize (\d+)")
#: What a file begins with that is something else than its name says, what that is, and what to do.
_FOREIGN = (
    (b"\x1f\x8b", "it is compressed by gzip", "Add .gz to its name."),
    (b"\x28\xb5\x2f\xfd", "it is compressed by zstd", "Add .zst to its name."),
    (b"PAR1\x15", "it is a parquet file", "Let its name end in .parquet."),
    (b"ARROW1\0\0", "it is an Arrow file", "Let its name end in .arrow."),
    (b"PK\x03\x04", "it is a zip archive (a spreadsheet, perhaps)",
     "Unpack it; a spreadsheet's name ends in .xlsx."),
    (b"BZh91AY&SY", "it is compressed by bzip2", "Unpack it: bunzip2."),
    (b"\xfd7zXZ", "it is compressed by xz", "Unpack it: unxz."),
)


def compression_of(path: Path) -> str:
    """`.gz`, `.zst`, or nothing."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSIONS else ""


def unreadable(path: Path, error: OSError) -> TunesmithError:
    """What a failed operation on a file of rows means."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC) and (
            explained := explained_os_error(error, path)):
        return explained
    hint = (f"Give yourself the right to read it: chmod u+r {path}"
            if error.errno in (errno.EACCES, errno.EPERM)
            else "")
    return DataError(f"{path}: cannot be read: {error.strerror or error}", hint)


class _Unpacked(io.RawIOBase):
    """The bytes of a file, decompressed. What goes wrong on the way is a DataError that names the file."""

    def __init__(self, path: Path, file: BinaryIO, stream: Any) -> None:
        self._path, self._file, self._stream = path, file, stream
        self._packed_bytes, self._bytes = os.fstat(file.fileno()).st_size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As of any raw stream. Raises DataError."""
        try:
            data = self._stream.read(len(buffer))
        except (EOFError, zlib.error, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise unreadable(self._path, error) from None
            raise DataError(f"{self._path}: not a whole {self._path.suffix.lower()} file: "
                            f"{_first_line(error)}",
                            "It is cut short or damaged: copy or download it again.") from None
        buffer[:len(data)] = data
        self._bytes += len(data)
        if self._bytes > _MOST_UNPACKED_BYTES and self._bytes > _MOST_EXPANSION * self._packed_bytes:
            raise DataError(f"{self._path}: its {self._packed_bytes:,} bytes become more than "
                            f"{self._bytes / 2**30:.1f} GiB",
                            "It repeats itself, or is made to fill the memory: "
                            "unpack it yourself if you trust it.")
        return len(data)

    def close(self) -> None:
        """The file too."""
        self._file.close()
        super().close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader[Any]]:
    """The decompressed bytes of a file. Raises DataError."""
    file = _opened(path)
    try:
        head = file.read(256)
        file.seek(0)
        _refuse_pointers(path, head)
        compression = compression_of(path)
        stream: Any = file
        if compression == ".gz":
            stream = gzip.GzipFile(fileobj=file)
        elif compression == ".zst":
            import pyarrow

            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file), "zstd")
        with io.BufferedReader(_Unpacked(path, file, stream), _CHUNK) as buffered:
            yield buffered
    finally:
        file.close()


def _opened(path: Path) -> BinaryIO:
    """A regular file; a pipe would give its rows once, and perhaps never."""
    try:
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise DataError(f"{path}: a pipe or a device, not a file", "Write the rows to a file first.")
    except OSError as error:
        raise unreadable(path, error) from None
    return file


def _refuse_pointers(path: Path, head: bytes) -> None:
    """Raise DataError for what git keeps in a large file's place."""
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        size = _POINTER_SIZE.search(head)
        of = f" of {int(size[1]):,} bytes" if size else ""
        raise DataError(f"{path}: a Git LFS pointer, not the file itself{of}",
                        "Fetch it in the clone: git lfs install && git lfs pull")
    if head.startswith(b"/annex/objects/"):
        raise DataError(f"{path}: a git-annex pointer, not the file itself",
                        "Fetch it in the clone: git annex get")


@contextmanager
def open_seekable(path: Path) -> Iterator[Any]:
    """A file for readers that jump in it: as it is, or decompressed into a temporary file. Raises
    DataError.
    """
    if not compression_of(path):
        file = _opened(path)
        with file:
            _refuse_pointers(path, file.read(256))
            file.seek(0)
            yield file
        return
    with open_bytes(path) as packed, tempfile.TemporaryFile() as unpacked:
        try:
            while chunk := packed.read(1 << 20):
                unpacked.write(chunk)
        except OSError as error:
            raise unreadable(Path(tempfile.gettempdir()), error) from None
        unpacked.seek(0)
        yield unpacked


class Text:
    """The text of a file, read on and on. Bytes that are not of its encoding stand as lone surrogates in
    it.
    """

    def __init__(self, path: Path, wrapped: io.TextIOWrapper) -> None:
        self.path, self._wrapped = path, wrapped
        self._advised = False  # the advice holds for the whole file, and costs more than the row

    def read(self, count: int) -> str:
        """So many characters; fewer at the end. Raises DataError."""
        try:
            return self._wrapped.read(count)
        except UnicodeDecodeError as error:
            raise self._not_of(error) from None

    def line(self) -> str:
        """The next line with its end, empty at the end of the file; cut after LONGEST_ROW characters."""
        try:
            return self._wrapped.readline(LONGEST_ROW)
        except UnicodeDecodeError as error:
            raise self._not_of(error) from None

    def _not_of(self, error: UnicodeDecodeError) -> DataError:
        return DataError(f"{self.path}: not whole {error.encoding} text, which its byte-order mark says it "
                         f"is: {error.reason}", "It is cut short or damaged: copy or download it again.")

    def damage(self, line: str, number: int) -> DataError | None:
        """The error for a line with bytes that are not of the encoding; None for any other."""
        if line.isascii():
            return None
        try:
            line.encode()
        except UnicodeEncodeError as error:
            place, byte = f"{self.path}, line {number}", ord(line[error.start]) & 0xff
        else:
            return None
        problem = f"{place}: not UTF-8 text (byte 0x{byte:02x})"
        if self._advised:
            return DataError(problem)
        self._advised = True
        raw = line.encode("utf-8", "surrogateescape")
        with open_bytes(self.path) as file:
            sample = file.read(_SAMPLE_BYTES)
        return DataError(problem, advice(self.path, sample, raw))


@contextmanager
def open_text(path: Path, newline: str | None = "\n") -> Iterator[Text]:
    """The text of a file: UTF-8, or what its byte-order mark says. newline: as for `open`. Raises
    DataError.
    """
    with open_bytes(path) as file:
        head = file.peek(512)[:512]
        encoding = by_mark(head)
        if encoding is None:
            _refuse_foreign(path, head)
        wrapped = io.TextIOWrapper(file, encoding or "utf-8", errors="surrogateescape", newline=newline)
        yield Text(path, wrapped)


def empty(path: Path) -> DataError:
    """The error for a file of no rows."""
    return DataError(f"{path}: the file is empty", "Remove it, or copy or download it again.")


def _refuse_foreign(path: Path, head: bytes) -> None:
    """Raise DataError for a file that is no text, or UTF-16 that does not say so."""
    for magic, what, hint in _FOREIGN:
        if head.startswith(magic):
            raise DataError(f"{path}: {what}, which its name does not say", hint)
    if re.match(rb"\s*<(!doctype html|html)\b", head, re.IGNORECASE):
        raise DataError(f"{path}: it is a web page", "What was saved is the page about the file, or an error "
                        "message: download the file itself.")
    if (encoding := without_mark(head)) is not None:
        name = encoding.replace("utf_16_", "UTF-16").upper()
        raise DataError(f"{path}: not UTF-8 text: it looks like {name} without a byte-order mark",
                        iconv(path, encoding))
