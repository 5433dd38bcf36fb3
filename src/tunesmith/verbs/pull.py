"""`tunesmith pull`: an adapter from the Hub into a folder, pinned, checked, sealed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.hub import parse_hub_id
from tunesmith.rundir import SEAL_NAME, check_seal, write_sealed_folder
from tunesmith.verbs.adapters import download_adapter
from tunesmith.verbs.show import Show, Silent


def pull(repo: str, folder: str | os.PathLike[str], *, revision: str | None = None, show: Show | None = None) -> dict[str, Any]:
    """Download an adapter, check it as far as that goes without its base, and write it as a folder, whole or not at all.

    repo: ORG/NAME or ORG/NAME@REVISION. Returns repo, commit, folder, base, prompt (an example), files (name to bytes).
    Raises UsageError where the folder holds something else, NetworkError, IntegrityError, DiskError.
    """
    from tunesmith.model.lora import check_adapter
    from tunesmith.share.note import example_prompt, read_note

    show = show or Silent()
    target, wanted = Path(folder).expanduser().absolute(), parse_hub_id(repo)
    if wanted is None or (wanted.revision and revision):
        raise UsageError(f"{repo}: not the name of a repository", "Write ORG/NAME, or ORG/NAME@REVISION.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not _is_adapter(target):
        raise UsageError(f"{target}: holds something else", "Name a folder that does not exist yet.")
    found = download_adapter(f"{wanted.repo}@{revision}" if revision else repo, show, named=True)
    config = check_adapter(found)
    files = {path.name: path.read_bytes() for path in sorted(found.iterdir()) if path.is_file() and path.name != SEAL_NAME}
    if _is_adapter(target) and not _same(target, files):
        raise UsageError(f"{target}: holds another adapter", "Name a folder that does not exist yet.")
    write_sealed_folder(target, files)
    return {"repo": wanted.repo, "commit": found.name, "folder": str(target), "base": config.get("base_model_name_or_path"),
            "prompt": example_prompt(read_note(found)), "files": {name: len(content) for name, content in files.items()}}


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").exists() and (folder / SEAL_NAME).exists()


def _same(folder: Path, files: dict[str, bytes]) -> bool:
    """Whether a folder that was pulled before has these files; a damaged one may be written again."""
    return bool(check_seal(folder)) or all(
        (folder / name).is_file() and (folder / name).read_bytes() == content for name, content in files.items())
