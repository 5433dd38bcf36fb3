"""The layout of a run folder, its lock, and its manifest."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from tunesmith.errors import DiskError, EnvironmentFault, IntegrityError, UsageError
from tunesmith.rundir.checkpoints import Checkpoints
from tunesmith.rundir.files import disk_errors, remove_leftovers, write_atomically
from tunesmith.rundir.metrics import MetricsLog
from tunesmith.rundir.seal import SEAL_NAME, check_seal, read_seal, seal


class RunFolder:
    """One run on disk. As a context manager it holds the run's lock, so that two processes never write one run."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.recipe = self.path / "recipe.yaml"
        self.manifest = self.path / "manifest.json"
        self.adapter = self.path / "adapter"
        self.samples = self.path / "samples.jsonl"
        self.verdict = self.path / "verdict.json"
        self.report = self.path / "report.html"
        self.metrics = MetricsLog(self.path / "metrics.jsonl")
        self._lock: int | None = None

    def checkpoints(self, keep: int = 3) -> Checkpoints:
        """The run's checkpoints, of which the newest `keep` stay."""
        return Checkpoints(self.path / "checkpoints", keep)

    def __enter__(self) -> RunFolder:
        """Create the folder if need be and lock it. Raises DiskError, UsageError, or EnvironmentFault when taken."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file, not a run folder", "Choose another folder with --run.")
        if self.path.is_dir() and not self.recipe.exists() and any(
                p for p in self.path.iterdir() if not p.name.startswith(".")):
            raise UsageError(f"{self.path} holds other files and no recipe.yaml: it is not a run folder",
                             "Choose another folder with --run.")
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            self._lock = None
            raise EnvironmentFault(f"{self.path}: another process (pid {owner}) is writing this run",
                                   "Wait for it, or give this one its own folder with --run.") from None
        with disk_errors(self.path):
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        remove_leftovers(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None and [p.name for p in self.path.iterdir()] == [".lock"]:
            (self.path / ".lock").unlink()  # it never began: leave nothing behind
            self.path.rmdir()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def write_json(self, path: Path, value: Any) -> None:
        """Write a JSON file of the run atomically. Raises DiskError."""
        write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, path: Path) -> dict[str, Any]:
        """Read a JSON file of the run. Raises IntegrityError when it is missing or not JSON."""
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise IntegrityError(f"{path}: missing", "Is this a run folder?") from None
        except ValueError:
            raise IntegrityError(f"{path}: damaged: not JSON",
                                 f"tunesmith verify {self.path} checks every file.") from None
        if not isinstance(value, dict):
            raise IntegrityError(f"{path}: damaged: not a JSON object")
        return value

    def begin(self) -> None:
        """Seal what the run starts from, its recipe and its manifest. Raises DiskError."""
        seal(self.path, [self.recipe.name, self.manifest.name])

    def begun(self) -> bool:
        """Whether recipe and manifest are written and sealed. Raises IntegrityError when one of them is damaged."""
        if not (self.path / SEAL_NAME).exists():
            return False
        start = (self.recipe, self.manifest, self.path / SEAL_NAME)
        if damaged := [path for path in check_seal(self.path) if path in start]:
            raise IntegrityError(f"{damaged[0]}: damaged", "Put it back, or start another run with --run.")
        return True

    def finished(self) -> bool:
        """Whether the run went to its end. Raises IntegrityError when the seal that says so is damaged."""
        return (self.path / SEAL_NAME).exists() and self.report.name in read_seal(self.path)

    def finish(self) -> None:
        """Seal the whole run but the checkpoints (each has its own seal) and the lock. Raises DiskError."""
        names = [str(path.relative_to(self.path)) for path in sorted(self.path.rglob("*"))
                 if path.is_file() and not any(part.startswith(".") for part in path.relative_to(self.path).parts)
                 and path.relative_to(self.path).parts[0] not in ("checkpoints", SEAL_NAME)]
        seal(self.path, names)

    def require_space(self, needed_bytes: int) -> None:
        """Raise DiskError when the disk has less than `needed_bytes` free."""
        status = os.statvfs(self.path)
        free_bytes = status.f_bavail * status.f_frsize
        if free_bytes < needed_bytes:
            raise DiskError(f"{self.path}: the run needs about {needed_bytes / 1e6:,.0f} MB of disk, "
                            f"{free_bytes / 1e6:,.0f} MB are free", "Free some space or choose another disk with --run.")
