"""`tunesmith pull`: an adapter from the Hub into a folder, pinned, checked, sealed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from tunesmith.errors import IntegrityError, UsageError
from tunesmith.hub import parse_hub_id
from tunesmith.paths import expanded
from tunesmith.rundir import (
    CARD_NAME,
    SEAL_NAME,
    read_seal,
    refuse_where_we_are,
    require_free,
    write_sealed_folder,
)
from tunesmith.verbs.adapters import download_adapter
from tunesmith.verbs.show import Show, Silent


def pull(repo: str, folder: str | os.PathLike[str], *, revision: str | None = None,
         show: Show | None = None) -> dict[str, Any]:
    """Download an adapter, check what can be without its base, write it to a folder, whole or not at all.

    repo: ORG/NAME or ORG/NAME@REVISION. Returns repo, commit, folder, base, prompt (an example), files (name
    to bytes). Raises UsageError where the folder holds something else, NetworkError, IntegrityError,
    DiskError.
    """
    from tunesmith.model.lora import check_adapter
    from tunesmith.share.metadata import example_prompt, read_metadata

    show = show or Silent()
    target, hub_id = expanded(folder).absolute(), parse_hub_id(repo)
    if hub_id is None:
        raise UsageError(f"{repo}: not the name of a repository", "Write ORG/NAME, or ORG/NAME@REVISION.")
    if hub_id.revision and revision:
        raise UsageError(f"{repo}: the revision is given twice",
                         "Leave out --revision, or what stands behind the @.")
    if not _is_adapter(target):
        require_free(target)
    refuse_where_we_are(target)
    downloaded = download_adapter(f"{hub_id.repo}@{revision}" if revision else repo, show, named=True)
    config = check_adapter(downloaded)
    files = {path.name: path.read_bytes() for path in sorted(downloaded.iterdir()) if path.is_file()
             and path.name != SEAL_NAME}
    if _is_adapter(target):
        _refuse_another(target, files)
    write_sealed_folder(target, files)
    return {"repo": hub_id.repo, "commit": downloaded.name, "folder": str(target),
            "base": config.get("base_model_name_or_path"),
            "prompt": example_prompt(read_metadata(downloaded)),
            "files": {name: len(content) for name, content in files.items()}}


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").exists() and (folder / SEAL_NAME).exists()


def _refuse_another(folder: Path, files: dict[str, bytes]) -> None:
    """Raise UsageError for a folder that holds anything but these files, whole or damaged."""
    try:
        pulled = read_seal(folder)
    except IntegrityError:
        pulled = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name == SEAL_NAME:
            continue
        if name not in files or not path.is_file():
            raise UsageError(f"{folder}: holds {name} too, which would be lost",
                             "Name a folder that does not exist yet.")
        same = path.read_bytes() == files[name]
        if not same and (name == CARD_NAME or pulled.get(name) != hashlib.sha256(files[name]).hexdigest()):
            raise UsageError(f"{folder}: its {name} is another one, which would be lost",
                             "Name a folder that does not exist yet.")
