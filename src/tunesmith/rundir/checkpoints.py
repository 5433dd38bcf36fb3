"""The checkpoints of a run: sealed folders named by step, the newest few kept, the newest whole one found."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tunesmith.errors import IntegrityError
from tunesmith.rundir.files import TEMPORARY_PREFIX, disk_errors, remove_leftovers
from tunesmith.rundir.seal import check_seal, read_sealed, write_sealed_folder


class Checkpoints:
    """The folder `checkpoints/` of a run: `step-000050/` and so on, each sealed."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """The checkpoint folders, oldest first, whole or not."""
        return sorted((path for path in self.folder.glob("step-*")
                       if re.fullmatch(r"step-[0-9]{1,18}", path.name)),
                      key=lambda path: int(path.name[5:]))

    def any_whole(self) -> bool:
        """Whether a run could go on from one of them."""
        return any(not check_seal(path) for path in reversed(self.paths()))

    def save(self, step: int, files: dict[str, bytes]) -> Path:
        """Write a checkpoint whole, then drop the oldest beyond `keep`; on DiskError these stay."""
        path = self.folder / f"step-{step:06d}"
        write_sealed_folder(path, files)
        with disk_errors(self.folder):
            for old in [p for p in self.paths() if p != path][: -(self.keep - 1) or None]:
                # Renamed first: a crash half-way through the deletion then leaves no torn checkpoint.
                doomed = old.with_name(TEMPORARY_PREFIX + old.name)
                old.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)
        return path

    def newest_whole(self) -> tuple[Path | None, dict[str, bytes], list[str]]:
        """The newest checkpoint whose every byte is as written.

        Returns its folder (None when there is none), its files, and what is wrong with each newer one; those
        are put aside, until the next time.
        """
        with disk_errors(self.folder):
            return self._newest_whole()

    def _newest_whole(self) -> tuple[Path | None, dict[str, bytes], list[str]]:
        remove_leftovers(self.folder)
        for old in self.folder.glob(".damaged-*"):
            shutil.rmtree(old, ignore_errors=True)
        damaged: list[str] = []
        for path in reversed(self.paths()):
            try:
                return path, read_sealed(path), damaged
            except IntegrityError as error:
                damaged.append(error.message)
                # kept to be looked at, not counted any more
                path.rename(path.with_name(f".damaged-{path.name}"))
        return None, {}, damaged
