"""The layout of a run folder, its lock, and its manifest."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tunesmith.errors import DiskError, EnvironmentFault, IntegrityError, UsageError
from tunesmith.rundir.checkpoints import Checkpoints
from tunesmith.rundir.files import disk_errors, remove_leftovers, sync_folder, write_atomically
from tunesmith.rundir.metrics import MetricsLog
from tunesmith.rundir.ordinary import (
    MOST_JSON_BYTES,
    read_json_object,
    read_ordinary,
    require_ordinary_folder,
)
from tunesmith.rundir.seal import (
    CHECKPOINTS_NAME,
    EVALUATIONS_NAME,
    LOCK_NAME,
    NEXT_RECIPE_NAME,
    SEAL_NAME,
    canonical_seal,
    check_seal,
    read_seal,
    recipe_waits,
    seal,
    sha256_file,
)

#: How often the lock is tried, and the wait in between [s].
_LOCK_ATTEMPTS, _LOCK_WAIT_S = 4, 0.05


class RunFolder:
    """One run on disk. As a context manager it holds the run's lock: two processes never write one run."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.recipe = self.path / "recipe.yaml"
        self.manifest = self.path / "manifest.json"
        self.adapter = self.path / "adapter"
        self.samples = self.path / "samples.jsonl"
        self.verdict = self.path / "verdict.json"
        self.result = self.path / "result.json"
        self.report = self.path / "report.html"
        self.metrics = MetricsLog(self.path / "metrics.jsonl")
        self._lock: int | None = None
        self._running = False

    def checkpoints(self, keep: int = 3) -> Checkpoints:
        """The run's checkpoints, of which the newest `keep` stay."""
        return Checkpoints(self.path / CHECKPOINTS_NAME, keep)

    def __enter__(self) -> RunFolder:
        """Create the folder if need be; lock it. Raises DiskError, UsageError, EnvironmentFault (locked)."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file, not a run folder", "Choose another folder with --run.")
        if self.path.is_dir() and not os.path.lexists(self.recipe) and any(
                p for p in self.path.iterdir() if not p.name.startswith(".")):
            raise UsageError(f"{self.path} holds other files and no recipe.yaml: it is not a run folder",
                             "Choose another folder with --run.")
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            require_ordinary_folder(self.path, written=frozenset({LOCK_NAME, self.metrics.path.name}))
            self._lock = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
                                 0o644)
        try:
            with disk_errors(self.path):
                self._take_lock(self._lock)
                os.ftruncate(self._lock, 0)
                os.pwrite(self._lock, str(os.getpid()).encode(), 0)
                remove_leftovers(self.path)
                remove_leftovers(self.path / EVALUATIONS_NAME)
        except BaseException:
            self._unlock()
            raise
        return self

    def _take_lock(self, lock: int) -> None:
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if attempt < _LOCK_ATTEMPTS - 1:  # whoever asks whether it is held holds it for a moment
                    time.sleep(_LOCK_WAIT_S)
        owner = os.read(lock, 32).decode(errors="replace").strip()
        raise EnvironmentFault(f"{self.path}: another process ({_process(owner)}) is writing this run",
                               "Wait for it or stop it (Ctrl-C there saves it), "
                               "or give this one its own folder with --run.")

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._lock is None:
            return
        if self._running and error is not None:
            from tunesmith.rundir.status import write_ending

            with contextlib.suppress(DiskError):  # what ended the run is told all the same
                write_ending(self.path, error)
        # what is written is written: that tidying up fails changes nothing
        with contextlib.suppress(OSError):
            if [p.name for p in self.path.iterdir()] == [LOCK_NAME]:
                (self.path / LOCK_NAME).unlink()  # it never began: leave nothing behind
                self.path.rmdir()
            os.ftruncate(self._lock, 0)
        self._unlock()

    def write_json(self, path: Path, value: Any) -> None:
        """Write a JSON file of the run atomically. Raises DiskError."""
        write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, path: Path) -> dict[str, Any]:
        """Read a JSON file of the run. Raises IntegrityError when it is missing or not JSON."""
        try:
            return read_json_object(path, infinite=True)  # a loss may have been NaN
        except FileNotFoundError:
            raise IntegrityError(f"{path}: missing", "Is this a run folder?") from None
        except IntegrityError as error:
            raise error.reword(hint=error.hint
                               or f"tunesmith verify {self.path} checks every file.") from None

    def recipe_text(self) -> str:
        """What the run's recipe.yaml says. Raises IntegrityError (no ordinary file of text), DiskError."""
        try:
            return read_ordinary(self.recipe, MOST_JSON_BYTES).decode("utf-8")
        except UnicodeDecodeError:
            raise IntegrityError(f"{self.recipe}: damaged: not UTF-8",
                                 f"tunesmith verify {self.path} checks every file.") from None

    def begin(self) -> None:
        """Seal what the run starts from, its recipe and its manifest. Raises DiskError."""
        seal(self.path, [self.recipe.name, self.manifest.name])

    def running(self) -> None:
        """Say that this process works on the run; how it ends is written when it leaves the folder."""
        from tunesmith.rundir.status import write_status  # late: pydantic, which --help does without

        write_status(self.path, "running")
        self._running = True

    @property
    def _next_recipe(self) -> Path:
        return self.path / NEXT_RECIPE_NAME

    def replace_recipe(self, text: str) -> None:
        """Write another recipe for a run that has begun, and seal it. Raises DiskError.

        A crash at any moment leaves the old recipe with its seal, or the new one: it waits beside the old one
        until the seal names it, and `begun` then puts it in its place.
        """
        write_atomically(self._next_recipe, text)
        hashes = {self.recipe.name: hashlib.sha256(text.encode()).hexdigest(),
                  self.manifest.name: sha256_file(self.manifest)}
        write_atomically(self.path / SEAL_NAME, canonical_seal(hashes))
        self._settle_recipe()

    def _settle_recipe(self) -> None:
        """End what `replace_recipe` began, or undo it."""
        if not os.path.lexists(self._next_recipe):
            return
        with disk_errors(self.recipe):
            if recipe_waits(self.path):
                os.replace(self._next_recipe, self.recipe)
            else:
                self._next_recipe.unlink()
            sync_folder(self.path)

    def begun(self) -> bool:
        """Whether recipe and manifest are written and sealed.

        Raises IntegrityError when one of them is damaged or lost, or the run folder is of another format.
        """
        from tunesmith.rundir.manifest import require_format  # late: pydantic, which --help does without

        if not (self.path / SEAL_NAME).exists():
            if later_file := self._later_than_seal():
                raise IntegrityError(f"{self.path / SEAL_NAME}: missing, "
                                     f"so nothing says what {later_file.name} was made of",
                                     "Copy the whole run folder again, or start another run with --run.")
            return False
        if self._lock is not None:
            self._settle_recipe()
        start = (self.recipe, self.manifest, self.path / SEAL_NAME)
        wrong = [path for path in check_seal(self.path) if path in start
                 and not (path == self.recipe and recipe_waits(self.path))]
        if wrong:
            what = "damaged" if os.path.lexists(wrong[0]) else "missing"
            raise IntegrityError(f"{wrong[0]}: {what}, so nothing says what this run was made of",
                                 "Put it back from a copy, or start another run with --run. tunesmith "
                                 f"verify {self.path} says what else is damaged.")
        require_format(self.path)
        return True

    def _later_than_seal(self) -> Path | None:
        """Something that a run writes only once it is sealed; training again would replace it."""
        if steps := self.checkpoints().paths():
            return steps[-1]
        if self.metrics.path.is_file() and self.metrics.path.stat().st_size:
            return self.metrics.path
        results = (self.adapter, self.samples, self.verdict, self.result, self.report)
        return next((path for path in results if os.path.lexists(path)), None)

    def run_id(self) -> str | None:
        """What tells this run from every other; None for one that has no manifest."""
        from tunesmith.rundir.manifest import read_manifest

        return read_manifest(self.path).run_id if self.manifest.exists() else None

    def finished(self) -> bool:
        """Whether the run went to its end. Raises IntegrityError when the seal that says so is damaged."""
        return (self.path / SEAL_NAME).exists() and self.report.name in read_seal(self.path)

    def finish(self) -> None:
        """Seal the run but for its lock, checkpoints and evaluations (which have seals). Raises DiskError."""
        from tunesmith.rundir.status import write_status

        write_status(self.path, "finished")
        names = [str(path.relative_to(self.path)) for path in sorted(self.path.rglob("*"))
                 if path.is_file()
                 and not any(part.startswith(".") for part in path.relative_to(self.path).parts)
                 and path.relative_to(self.path).parts[0]
                 not in (CHECKPOINTS_NAME, EVALUATIONS_NAME, SEAL_NAME)]
        seal(self.path, names)
        self._running = False

    def require_space(self, needed_bytes: int) -> None:
        """Raise DiskError when the disk has less than `needed_bytes` free."""
        status = os.statvfs(self.path)
        free_bytes = status.f_bavail * status.f_frsize
        if free_bytes < needed_bytes:
            raise DiskError(f"{self.path}: the run needs about {needed_bytes / 1e6:,.0f} MB of disk, "
                            f"{free_bytes / 1e6:,.0f} MB are free",
                            "Free some space or choose another disk with --run.")


def _process(owner: str) -> str:
    """The process that holds a run's lock, as the lock names it."""
    return f"pid {owner}" if owner.isdecimal() else "its pid is not known"
