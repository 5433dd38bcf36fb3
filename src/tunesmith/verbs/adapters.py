"""Open a run or an adapter folder: find its base, check its seal, load both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import IntegrityError, UsageError
from tunesmith.rundir import SEAL_NAME, check_seal


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter folder, and the run it stands in if it does."""

    folder: Path
    run: Path | None

    @property
    def recipe(self) -> Path | None:
        """The recipe of its run."""
        return self.run / "recipe.yaml" if self.run and (self.run / "recipe.yaml").exists() else None


def find_adapter(target: str) -> AdapterFiles:
    """The adapter behind a run folder or an adapter folder, its hashes checked if it has any.

    Raises UsageError when there is no such folder, IntegrityError when it has no adapter or a damaged one.
    """
    path = Path(target).expanduser().resolve()
    if not path.is_dir():
        kind = "a file, not a folder" if path.is_file() else "no such folder"
        raise UsageError(f"{target}: {kind}", "Give a run folder (such as runs/NAME) or an adapter folder.")
    if (path / "recipe.yaml").exists() and not (path / "adapter_config.json").exists():
        found = AdapterFiles(path / "adapter", path)
        if not found.folder.is_dir():
            raise IntegrityError(f"{target}: this run has no adapter yet", "Train it to its end first.")
    else:
        found = AdapterFiles(path, path.parent if (path.parent / "recipe.yaml").exists() else None)
    if (found.folder / SEAL_NAME).exists() and (damaged := check_seal(found.folder)):
        raise IntegrityError("\n".join(f"{file}: damaged" for file in damaged),
                             "The newest checkpoint of its run may still be whole; tunesmith verify says.")
    return found


def adapter_base(found: AdapterFiles, *, base: str | None, quantization: str | None) -> dict[str, Any]:
    """Which base an adapter wants and how it is kept: what the user says, else what the adapter's files say.

    Returns base, revision, quantization, and messages (whether it was trained on chats).
    Raises IntegrityError when the files name no base.
    """
    from tunesmith.model.lora import read_adapter_config
    from tunesmith.share.adapter import read_note

    config, note = read_adapter_config(found.folder), read_note(found.folder)
    name = base or note.get("base") or config.get("base_model_name_or_path")
    if not name:
        raise IntegrityError(f"{found.folder}: names no base model", "Name it with --base.")
    kept = quantization or note.get("quantization", "none")
    if kept not in ("none", "int8", "nf4"):
        raise IntegrityError(f"{found.folder}: names an unknown quantisation, {kept!r}", "Name it with --quantization.")
    return {"base": name, "revision": None if base else note.get("revision", config.get("revision")),
            "quantization": kept, "messages": bool(note.get("messages"))}
