"""A folder's seal: a file with the SHA-256 of every other, in canonical bytes, so any flipped byte shows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunesmith.errors import IntegrityError
from tunesmith.rundir.files import write_atomically, write_folder_atomically
from tunesmith.rundir.ordinary import MOST_JSON_BYTES, open_ordinary, parse_json, read_ordinary

SEAL_NAME = "sha256.json"
#: A card is for its owner to edit: what is sealed shows that it was, and only that.
CARD_NAME = "README.md"
#: Where a run's next recipe waits until the seal names it.
NEXT_RECIPE_NAME = ".next-recipe.yaml"
#: What a run's seal does not cover: its lock, and what has seals of its own.
LOCK_NAME, CHECKPOINTS_NAME, EVALUATIONS_NAME = ".lock", "checkpoints", "evaluations"
#: What a run is doing: covered once it is finished.
STATUS_NAME = "status.json"
_CHUNK_BYTES = 1 << 22


def sha256_file(path: Path) -> str:
    """The SHA-256 of an ordinary file's content, as hex. Raises as `open_ordinary`."""
    digest = hashlib.sha256()
    with open_ordinary(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_seal(hashes: dict[str, str]) -> bytes:
    """The content of a seal that lists these files."""
    listed = json.dumps(hashes, sort_keys=True, indent=1)
    seal_of_list = {"files": hashes, "this_list": hashlib.sha256(listed.encode()).hexdigest()}
    return (json.dumps(seal_of_list, sort_keys=True, indent=1) + "\n").encode()


def seal(folder: Path, names: Iterable[str]) -> None:
    """Write the seal of `folder` over the files `names` (relative, with /). Raises DiskError."""
    write_atomically(folder / SEAL_NAME,
                     canonical_seal({name: sha256_file(folder / name) for name in sorted(names)}))


def write_sealed_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write `files` and their seal as `folder`, whole or not at all. Raises DiskError."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_folder_atomically(folder, {**files, SEAL_NAME: canonical_seal(hashes)})


def read_seal(folder: Path) -> dict[str, str]:
    """The hashes listed in a folder's seal. Raises IntegrityError when the seal is missing or damaged."""
    path = folder / SEAL_NAME
    try:
        content = read_ordinary(path, MOST_JSON_BYTES)
        hashes = parse_json(content, str(path))["files"]
        whole = all(map(_is_entry, hashes, hashes.values())) and canonical_seal(hashes) == content
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing") from None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        whole = False
    if not whole:
        raise IntegrityError(f"{path}: damaged")
    return dict(hashes)


def _is_entry(name: Any, digest: Any) -> bool:
    """Whether a line of a seal can stand there: a file below its folder, and a hash."""
    return (isinstance(name, str) and isinstance(digest, str)
            and re.fullmatch(r"[0-9a-f]{64}", digest) is not None
            and "\0" not in name and not name.startswith("/")
            and all(part not in ("", ".", "..") for part in name.split("/")))


def check_seal(folder: Path, *, cards: bool = True) -> list[Path]:
    """A sealed folder's files that are missing, not ordinary or changed; the seal itself if it is damaged.

    cards: whether one that was edited counts.
    """
    try:
        hashes = read_seal(folder)
    except IntegrityError:
        return [folder / SEAL_NAME]
    names = [name for name in hashes if cards or Path(name).name != CARD_NAME]
    return [folder / name for name in names if not _as_written(folder, name, hashes[name])]


def _as_written(folder: Path, name: str, digest: str) -> bool:
    path = folder / name
    try:
        if any(parent.is_symlink() for parent in list(path.parents)[:len(Path(name).parts) - 1]):
            return False
        return sha256_file(path) == digest
    except (FileNotFoundError, IntegrityError):
        return False


def read_sealed(folder: Path) -> dict[str, bytes]:
    """A sealed folder's files, checked as they are read. Raises IntegrityError for the first damaged one."""
    files = {}
    for name, digest in read_seal(folder).items():
        try:
            content = read_ordinary(folder / name)
        except FileNotFoundError:
            raise IntegrityError(f"{folder / name}: missing") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise IntegrityError(f"{folder / name}: damaged")
        files[name] = content
    return files


def recipe_waits(run: Path) -> bool:
    """Whether a run's seal names its next recipe: it is the run's, only not yet in its place."""
    try:
        return _as_written(run, NEXT_RECIPE_NAME, read_seal(run).get("recipe.yaml", ""))
    except IntegrityError:
        return False
