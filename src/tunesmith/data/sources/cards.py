"""What the card (README.md) of a clone of a Hub data set says about its files: configurations and their
splits.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tunesmith.data.sources.splits import match_split
from tunesmith.errors import DataError
from tunesmith.visible import on_one_line

_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Configuration:
    """One of the configurations of a data set. files: by split; where there are none, all that is in
    folder.
    """

    folder: str = "."
    files: dict[str, list[Path]] = field(default_factory=dict)


def configuration(folder: Path, name: str | None, key: str) -> Configuration | None:
    """The configuration that is meant; None where the card names none. name: `data.name`. Raises
    DataError.
    """
    configs = _configs(folder / "README.md")
    if not configs:
        return None
    chosen = configs.get(name) if name is not None else _usual(configs)
    if chosen is None:
        names = ", ".join(on_one_line(each, 40) for each in configs)
        if name is not None:
            raise DataError(f"{key}: {folder} has no configuration {name!r}", f"It has {names}.",
                            setting="data.name")
        raise DataError(f"{key}: {folder} has several configurations: {names}",
                        f"Say which one: --set data.name='{next(iter(configs))}'", setting="data.name")
    files: dict[str, list[Path]] = {}
    for split, pattern in _patterns(chosen.get("data_files")):
        files.setdefault(match_split(split, ("train", "validation", "test")) or split, []).extend(
            _matching(folder, pattern))
    directory = chosen.get("data_dir")
    return Configuration(_inside(folder, directory) if isinstance(directory, str) else ".", files)


def _configs(card: Path) -> dict[str, dict[str, Any]]:
    """The configurations by name, as the card has them; none where there is no card, or nothing in it."""
    try:
        with card.open(encoding="utf-8", errors="replace") as file:
            found = _FRONT_MATTER.match(file.read(_MOST_BYTES))
        value = yaml.safe_load(found[1]) if found else None
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    configs = value.get("configs") if isinstance(value, dict) else None
    return {str(each.get("config_name", "default")): each for each in configs
            if isinstance(each, dict)} if isinstance(
        configs, list) else {}


def _usual(configs: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The configuration where none is asked for: the only one, or what is called or marked default."""
    if len(configs) == 1:
        return next(iter(configs.values()))
    marked = [each for each in configs.values() if each.get("default") is True]
    return marked[0] if len(marked) == 1 else configs.get("default")


def _patterns(data_files: Any) -> list[tuple[str, str]]:
    """(split, path or glob) of each entry; of train where no split is named."""
    if isinstance(data_files, str):
        return [("train", data_files)]
    patterns: list[tuple[str, str]] = []
    for each in data_files if isinstance(data_files, list) else []:
        if isinstance(each, str):
            patterns.append(("train", each))
        elif isinstance(each, dict):
            paths = each.get("path")
            patterns += [(str(each.get("split", "train")), path)
                         for path in ([paths] if isinstance(paths, str) else paths or [])
                         if isinstance(path, str)]
    return patterns


def _matching(folder: Path, pattern: str) -> list[Path]:
    _inside(folder, pattern)
    found = sorted(Path(each)
                   for each in glob.glob(str(Path(glob.escape(str(folder)), pattern)), recursive=True))
    if not (files := [each for each in found if each.is_file()]):
        raise DataError(f"{folder}: its card (README.md) names {on_one_line(pattern)}, which is not there",
                        "Download the whole data set, or name the files that you have.")
    return files


def _inside(folder: Path, path: str) -> str:
    """The path, which must be one below the folder. Raises DataError."""
    if "://" in path or Path(path).is_absolute() or ".." in Path(path).parts:
        raise DataError(f"{folder}: its card (README.md) names a file outside of it: {on_one_line(path)}",
                        "Name the files themselves.")
    return path
