"""Re-hash a run, a checkpoint or an adapter and say which files are not what was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.errors import IntegrityError
from tunesmith.rundir.checkpoints import Checkpoints
from tunesmith.rundir.seal import SEAL_NAME, check_seal, read_seal


@dataclass
class Damage:
    """What a verification found: files that were checked, and those that are damaged, missing or not sealed."""

    checked: list[Path] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)
    unsealed: list[Path] = field(default_factory=list)

    def add_sealed(self, folder: Path) -> None:
        """Check one sealed folder."""
        wrong = check_seal(folder)
        self.damaged += [path for path in wrong if path not in self.damaged]
        listed = [folder / SEAL_NAME]
        if folder / SEAL_NAME not in wrong:
            listed += [folder / name for name in read_seal(folder)]
        self.checked += [path for path in listed if path not in self.checked]


def verify_path(path: Path) -> Damage:
    """Check a run folder, a checkpoint or an adapter folder.

    A run that was stopped half-way has no seal of its own yet; its checkpoints and its start are still checked.
    Raises IntegrityError when there is nothing at `path` that was ever sealed.
    """
    if not path.is_dir():
        raise IntegrityError(f"{path}: no such folder", "Give a run folder or an adapter folder.")
    found = Damage()
    is_run = (path / "recipe.yaml").exists() or (path / "checkpoints").is_dir()
    if (path / SEAL_NAME).exists() or not is_run:
        if not (path / SEAL_NAME).exists():
            raise IntegrityError(f"{path}: has no {SEAL_NAME}, so nothing says what its files should be",
                                 "Adapters made by other tools carry no hashes; tunesmith evaluate can still judge them.")
        found.add_sealed(path)
    for checkpoint in Checkpoints(path / "checkpoints", keep=1).paths():
        found.add_sealed(checkpoint)
    if (path / "adapter" / SEAL_NAME).exists():
        found.add_sealed(path / "adapter")
    known = set(found.checked) | set(found.damaged)
    found.unsealed = [file for file in sorted(path.rglob("*")) if file.is_file() and file not in known
                      and not any(part.startswith(".") for part in file.relative_to(path).parts)]
    return found
