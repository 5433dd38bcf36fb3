"""Places on this machine as users name them."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from tunesmith.errors import UsageError


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with a leading ~ as the user's home; as it is where the user has no passwd entry."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def close_file(path: Path) -> str:
    """The question whether a file of nearly that name beside it is meant; nothing where there is none."""
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f"Did you mean {path.with_name(close[0])}? " if close else ""


def require_utf8(path: Path, name: str) -> None:
    """Raise UsageError for a place whose name is not UTF-8: safetensors opens no file there."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name}: {path}: its name is not UTF-8, and safetensors cannot open files there",
                         "Choose, or rename to, a place whose whole path is UTF-8.") from None
