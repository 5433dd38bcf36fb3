"""Which files a local source means: a file, a folder, a glob, splits in folders or names, a clone, a saved
data set.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tunesmith import embedded
from tunesmith.data.sources.cards import configuration
from tunesmith.data.sources.files import KNOWN, SUFFIXES, format_of
from tunesmith.data.sources.inputs import compression_of, unreadable
from tunesmith.data.sources.saved import saved_files, saved_splits
from tunesmith.data.sources.splits import ALL, NoSuchSplit, Part, match_split, parse_split, split_of
from tunesmith.errors import DataError
from tunesmith.paths import close_file, expanded

#: What stands beside data and is none: what `datasets` writes about a data set, and texts about a folder.
_NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
_TEXTS = ("readme", "license", "licence", "requirements", "notice", "changelog")
#: A folder of more files than this is not looked through.
_MOST_FILES = 100_000


@dataclass(frozen=True)
class LocalData:
    """The files of a data set on this disk.

    source: as the recipe has it. root: the folder below which names are told. splits: files by split. named:
    whether the splits were told apart; otherwise all is `train`. left_out: data files that are of none.
    configured: whether the data set's card has configurations.
    """

    source: str
    root: Path
    splits: dict[str, list[Path]]
    named: bool = False
    left_out: list[Path] = field(default_factory=list)
    configured: bool = False

    def name_of(self, path: Path) -> str:
        """A file's name below the root, with the root's own name before it."""
        return str(Path(self.root.name, path.relative_to(self.root)))

    def chosen(self, split: str) -> list[tuple[Part, list[Path]]]:
        """The files that `data.split` asks for, by its parts. Raises DataError for a split that is not
        there.
        """
        parts = []
        for part in parse_split(split):
            name = match_split(part.name, self.splits)
            if name is None and part.name == ALL:
                files = [path for each in self.splits.values() for path in each]
            elif name is None and not self.named and _says(self.splits, part.name):
                files = self.splits["train"]
            elif name is None:
                raise NoSuchSplit(self.source, part.name, self.splits, "" if self.named else
                                  "Nothing in it is named after a split: all of it is train.")
            else:
                files = self.splits[name]
            parts.append((part, files))
        return parts

    def note(self, taken: list[Path]) -> str:
        """Which files are taken, and which are not, in a line."""
        rest = [(split, [path for path in files if path not in taken])
                for split, files in self.splits.items()]
        told = f"{self.source}: {_list([self._short(path) for path in taken])}"
        left = [f"{_list([self._short(path) for path in files], 3)} ({split})" for split, files in rest
                if files]
        if self.left_out:
            left.append(f"{_list([self._short(path) for path in self.left_out], 3)} (of no split)")
        return f"{told}; not taken: {', '.join(left)}." if left else f"{told}."

    def _short(self, path: Path) -> str:
        return str(path.relative_to(self.root))


def _says(splits: dict[str, list[Path]], asked: str) -> bool:
    """Whether the only files there are, named one by one, are of the split that is asked for."""
    meant = match_split(asked, ["train", "validation", "test"])
    return meant is not None and all(split_of(Path(path.name)) == meant for path in splits["train"])


def _list(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def local_data(source: str, key: str = "data.source", name: str | None = None) -> LocalData | None:
    """The files of a local source; None when it can only be a Hub id. name: `data.name`. Raises DataError."""
    path = embedded.path_of(source) or expanded(source)
    try:
        if path.is_file():
            if format_of(path) is None:
                raise DataError(f"{key}: {path}: files end in {KNOWN}; this in {path.suffix or 'nothing'}")
            return LocalData(source, path.parent, {"train": [path]})
        if path.is_dir():
            return _folder(source, path, key, name)
        if path.exists():
            raise DataError(f"{key}: {path}: a pipe or a device, not a file",
                            "Write the rows to a file first.")
        if glob.has_magic(source):
            return _glob(source, key)
    except OSError as error:
        raise unreadable(Path(error.filename or path), error).reword(setting=key) from None
    if format_of(path) or source.count("/") > 1 or source.startswith((".", "/", "~", "embedded:")):
        raise DataError(f"{key}: {source}: no such file or folder",
                        f"{close_file(path)}Paths are looked for from the current "
                        "folder, then from the recipe's.")
    return None


def local_files(source: str, key: str = "data.source") -> list[Path] | None:
    """All data files of a local source, of every split; None when it can only be a Hub id. Raises
    DataError.
    """
    found = local_data(source, key)
    return [path for files in found.splits.values() for path in files] if found else None


def _folder(source: str, folder: Path, key: str, name: str | None) -> LocalData:
    if (folder / "dataset_dict.json").is_file():
        saved = {split: saved_files(folder / split) for split in saved_splits(folder)}
        return LocalData(source, folder, saved, named=True)
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return LocalData(source, folder, {"train": saved_files(folder)})
    card = configuration(folder, name, key)
    if card is not None and card.files:
        return LocalData(source, folder, card.files, named=True, configured=True)
    start = folder / card.folder if card is not None else folder
    top, below = _data_files(start, key)
    if not top and not below:
        raise DataError(f"{key}: the folder {start} has no {', '.join(SUFFIXES)} files")
    if top:
        splits_below = [path for path in below
                        if split_of(Path(path.relative_to(start).parts[0], "x")) is not None]
        found = _by_split(source, start, top + splits_below,
                          [path for path in below if path not in splits_below])
    else:
        found = _by_split(source, start, below)
    return replace(found, configured=card is not None)


def _glob(source: str, key: str) -> LocalData:
    paths = sorted(path
                   for path in _limited(map(Path, glob.iglob(str(expanded(source)), recursive=True)), key)
                   if format_of(path) and path.is_file())
    if not paths:
        raise DataError(f"{key}: no {', '.join(SUFFIXES)} file matches {source}")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    found = _by_split(source, root, paths)
    if len(found.splits) == 1:  # whatever split it is of, it was asked for
        return LocalData(source, root, {"train": paths})
    return found


def _data_files(folder: Path, key: str) -> tuple[list[Path], list[Path]]:
    """The data files right in a folder, and those further below, sorted; texts where there is nothing
    else.
    """
    found = sorted(_limited(_walk(folder, {os.path.realpath(folder)}), key))
    files = [path for path in found if format_of(path) not in (None, ".txt") and path.name not in _NO_DATA]
    files = files or [path for path in found
                      if format_of(path) == ".txt" and not path.name.lower().startswith(_TEXTS)]
    return ([path for path in files if path.parent == folder],
            [path for path in files if path.parent != folder])


def _limited(paths: Iterator[Path], key: str) -> Iterator[Path]:
    for count, path in enumerate(paths):
        if count == _MOST_FILES:
            raise DataError(f"{key}: more than {_MOST_FILES:,} files", "Name a smaller folder, or a glob.")
        yield path


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    """The files of a folder and of those below it, links followed, but for hidden ones."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__")):
                continue
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in seen:
                    yield from _walk(Path(entry.path), seen | {real})
            else:
                yield Path(entry.path)


def _by_split(source: str, root: Path, files: list[Path], left_out: list[Path] | None = None) -> LocalData:
    """Files told apart by the splits in their names. Those without one are train, if no others are."""
    splits: dict[str, list[Path]] = {}
    unnamed = []
    for path in files:
        if split := split_of(path.relative_to(root)):
            splits.setdefault(split, []).append(path)
        else:
            unnamed.append(path)
    named, rest = bool(splits), list(left_out or [])
    if unnamed and "train" in splits:
        rest += unnamed
    elif unnamed:
        splits = {"train": unnamed, **splits}
    for each in splits.values():
        _require_one_format(each)
    return LocalData(source, root, splits, named, rest)


def _require_one_format(files: list[Path]) -> None:
    """Raise DataError for files that differ in the ends of their names alone: the same rows twice, surely."""
    seen: dict[Path, Path] = {}
    for path in files:
        plain = path.with_name(path.name.removesuffix(path.suffix)) if compression_of(path) else path
        if (other := seen.setdefault(plain.with_suffix(""), path)) is not path:
            raise DataError(f"{path.parent}: {other.name} and {path.name} look like the same rows in two "
                            "formats",
                            "Name one of them, or a glob that takes only one format.")
