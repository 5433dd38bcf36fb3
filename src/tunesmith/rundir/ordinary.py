"""Files that are what they seem: ordinary, of their own folder, of bounded size; JSON without surprises.

A folder may come from anybody. A link in it may lead to a file that is none of the folder's, a device or a
pipe never ends, and JSON may be too deep or too long for its reader.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.errors import IntegrityError
from tunesmith.rundir.files import disk_errors

#: JSON that describes something (a config, a state, metadata) is far smaller than this.
MOST_JSON_BYTES = 32 << 20
_COPY = "Copy the file itself into its folder, if you trust it."


def require_ordinary(path: Path, *, written: bool = False) -> None:
    """Raise IntegrityError where `path` is there and is no ordinary file of its folder.

    A link of the Hub client's cache, from a snapshot to a blob of the same repository, counts as ordinary.
    written: the file will be changed in place, so that one with a second name (a hard link) is refused, too.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except ValueError:
        raise IntegrityError(f"{str(path)!r}: no name of a file") from None
    if stat.S_ISLNK(status.st_mode):
        if not in_hub_cache(path):
            raise IntegrityError(f"{path}: a link to {os.readlink(path)}, not a file of this folder", _COPY)
    elif not stat.S_ISREG(status.st_mode):
        raise IntegrityError(f"{path}: {_kind(status.st_mode)}, not a file", "Remove it.")
    elif written and status.st_nlink > 1:
        raise IntegrityError(f"{path}: has a second name elsewhere (a hard link), "
                             "and would be changed there as well", _COPY)


def require_ordinary_folder(folder: Path, written: frozenset[str] = frozenset()) -> None:
    """Raise IntegrityError where anything below `folder` is neither a folder nor an ordinary file. The folder
    itself may be reached by a link.

    written: names of files directly in it that will be changed in place, see `require_ordinary`.
    """
    for place, folders, files in os.walk(folder, onerror=_not_readable):
        parent = Path(place)
        for name in folders:
            if (parent / name).is_symlink():
                raise IntegrityError(f"{parent / name}: a link to {os.readlink(parent / name)}, "
                                     "not a folder of its own", _COPY)
        for name in files:
            require_ordinary(parent / name, written=parent == folder and name in written)


def _not_readable(error: OSError) -> None:
    raise error


def in_hub_cache(path: Path) -> bool:
    """Whether a link is the Hub client's own: from snapshots/COMMIT/... to blobs/ of the same repository."""
    repository = next((parent.parent for parent in path.absolute().parents if parent.name == "snapshots"),
                      None)
    # which is no link
    return repository is not None and path.resolve().parent == repository.resolve() / "blobs"


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
             stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "something else")


@contextmanager
def open_ordinary(path: Path) -> Iterator[BinaryIO]:
    """An ordinary file (see `require_ordinary`), open for reading; a pipe is refused, not waited for.

    Raises IntegrityError where it is none, FileNotFoundError where there is none, what `disk_errors` does,
    OSError.
    """
    with disk_errors(path):
        require_ordinary(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except NotADirectoryError:  # below a file there is nothing
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):  # what a link of the Hub's cache leads to
                raise IntegrityError(f"{path}: {_kind(mode)}, not an ordinary file",
                                     "Remove it, or take a whole copy.")
            yield file


def read_ordinary(path: Path, most_bytes: int | None = None) -> bytes:
    """An ordinary file's content. Raises IntegrityError beyond `most_bytes`, and as `open_ordinary`."""
    with open_ordinary(path) as file:
        if most_bytes is not None and os.fstat(file.fileno()).st_size > most_bytes:
            raise IntegrityError(f"{path}: larger than {most_bytes:,} bytes", "A file of this kind never is.")
        return file.read()


def parse_json(content: bytes | str, name: str, *, infinite: bool = False) -> Any:
    """JSON as Python's objects. infinite: NaN and Infinity, which Python's JSON writes, are taken.

    Raises IntegrityError: not JSON, not UTF-8, too deep, a number of thousands of digits, NaN or Infinity.
    """
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number of JSON's")

    try:
        return json.loads(content, parse_constant=None if infinite else refuse)
    except RecursionError:
        raise IntegrityError(f"{name}: damaged: JSON that is nested too deep") from None
    except ValueError as error:
        raise IntegrityError(f"{name}: damaged: not JSON: {str(error).splitlines()[0]}") from None


def read_json(path: Path, *, infinite: bool = False) -> Any:
    """A JSON file of the kind that describes something. Raises IntegrityError, FileNotFoundError, OSError."""
    return parse_json(read_ordinary(path, MOST_JSON_BYTES), str(path), infinite=infinite)


def read_json_object(path: Path, *, infinite: bool = False) -> dict[str, Any]:
    """The same, where it must be an object."""
    value = read_json(path, infinite=infinite)
    if not isinstance(value, dict):
        raise IntegrityError(f"{path}: damaged: not a JSON object")
    return value
