"""Files that appear whole or not at all: temporary name, write, fsync, rename, fsync of the folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import UsageError
from tunesmith.os_errors import explained_os_error

#: Names that begin so are leftovers of a write that did not finish; nothing reads them.
TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def disk_errors(what: Path) -> Iterator[None]:
    """Turn failures of the disk, and the system's limits, into errors with the path and what to do."""
    try:
        yield
    except OSError as error:
        explained = explained_os_error(error, what)
        if explained is None:
            raise
        raise explained from None


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and fsync it. Not atomic by itself."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view):]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content`: a reader, or a crash at any moment, sees the old file or the new one.

    Raises DiskError when the disk is full or cannot be written; the old file is then as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    with disk_errors(path):
        try:
            write_synced(temporary, data)
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def require_folder(path: Path, name: str, hint: str) -> None:
    """Raise UsageError where there is no folder at `path`, which the user called `name`."""
    if not path.is_dir():
        raise UsageError(f"{name}: {'a file, not a folder' if path.is_file() else 'no such folder'}", hint)


def require_free(folder: Path) -> None:
    """Raise UsageError where something is that a new folder would replace; an empty one is nothing."""
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder}: there is something there already",
                         "Choose another folder, or remove it.")
    refuse_where_we_are(folder)


def refuse_where_we_are(folder: Path) -> None:
    """Raise UsageError for the current folder or one around it: it would be replaced under the user."""
    if Path.cwd().is_relative_to(folder.absolute()):
        raise UsageError(f"{folder}: you are in it, and it would be replaced", "Name another folder.")


def write_folder_atomically(folder: Path, files: dict[str, bytes]) -> None:
    """Make `folder` hold exactly `files` (plain names); an older folder of that name is replaced.

    A crash leaves the old folder, the new one, or (between two renames) none and a leftover, never a mixture.
    Raises DiskError.
    """
    temporary = folder.with_name(TEMPORARY_PREFIX + folder.name)
    old = folder.with_name(TEMPORARY_PREFIX + "old-" + folder.name)
    with disk_errors(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            for leftover in (temporary, old):
                shutil.rmtree(leftover, ignore_errors=True)
            temporary.mkdir()
            for name, content in files.items():
                write_synced(temporary / name, content)
            sync_folder(temporary)
            if folder.exists():
                os.replace(folder, old)
            os.replace(temporary, folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not folder.exists():
                os.replace(old, folder)
            raise
        finally:
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what unfinished writes left in `folder`."""
    for path in folder.glob(TEMPORARY_PREFIX + "*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
