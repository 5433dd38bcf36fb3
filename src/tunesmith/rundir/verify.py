"""Re-hash a run, a checkpoint or an adapter and say which files are not what was written."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.errors import IntegrityError
from tunesmith.rundir.checkpoints import Checkpoints
from tunesmith.rundir.files import disk_errors, require_folder
from tunesmith.rundir.ordinary import read_json_object, require_ordinary_folder
from tunesmith.rundir.seal import (
    EVALUATIONS_NAME,
    SEAL_NAME,
    STATUS_NAME,
    check_seal,
    read_seal,
    recipe_waits,
)


@dataclass
class Verification:
    """What was found: the files checked, those damaged or missing, and those that no seal covers."""

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


def verify_path(path: Path) -> Verification:
    """Check a run folder, a checkpoint or an adapter folder.

    Of a run that was stopped half-way the start, the checkpoints, and the metrics up to the newest one are
    checked. Raises UsageError when there is no such folder, DiskError, IntegrityError when there is nothing
    in it that was ever sealed or it is a run folder of another format.
    """
    require_folder(path, str(path), "Give a run folder or an adapter folder.")
    with disk_errors(path):
        return _verify(path)


def _verify(path: Path) -> Verification:
    from tunesmith.rundir.manifest import require_format  # late: pydantic, which --help does without

    result = Verification()
    checkpoints = Checkpoints(path / "checkpoints", keep=1)
    if not (path / SEAL_NAME).exists() and not checkpoints.paths():
        raise IntegrityError(f"{path}: has no {SEAL_NAME}, so nothing says what its files should be",
                             "Give a run, a checkpoint, an adapter or a merged model; "
                             "what others wrote has no hashes.")
    require_ordinary_folder(path)
    result.add_sealed(path)  # a run is sealed before its first checkpoint, so here a missing seal is damage
    if recipe_waits(path):  # a process ended just before it put the recipe in its place; the next train does
        result.damaged = [file for file in result.damaged if file != path / "recipe.yaml"]
    # else nothing vouches for what it says
    if not {path / "manifest.json", path / SEAL_NAME} & set(result.damaged):
        require_format(path)
    run_id = _run_id(path / "manifest.json")
    for checkpoint in checkpoints.paths():
        result.add_sealed(checkpoint)
        if _run_id(checkpoint / "state.json") != run_id and checkpoint / "state.json" not in result.damaged:
            result.damaged.append(checkpoint / "state.json")  # of another run
    for evaluation in sorted((path / EVALUATIONS_NAME).glob("[0-9]*")):
        result.add_sealed(evaluation)
    _check_metrics(path, checkpoints, result)
    _check_status(path, result)
    if (path / "adapter" / SEAL_NAME).exists():
        result.add_sealed(path / "adapter")
    covered = set(result.checked) | set(result.damaged)
    result.unsealed = [file for file in sorted(path.rglob("*")) if file.is_file() and file not in covered
                       and not any(part.startswith(".") for part in file.relative_to(path).parts)]
    return result


def _run_id(path: Path) -> str:
    """The run that a manifest or a checkpoint's state names."""
    try:
        return str(read_json_object(path, infinite=True).get("run_id"))
    except (FileNotFoundError, IntegrityError):
        return str(None)


def _check_status(run: Path, result: Verification) -> None:
    """What an unfinished run says of its state is covered by no seal, but has to be readable."""
    from tunesmith.rundir.status import read_status

    status = run / STATUS_NAME
    if status in result.checked or not os.path.lexists(status):
        return
    result.checked.append(status)
    try:
        read_status(run)
    except IntegrityError:
        result.damaged.append(status)


def _check_metrics(run: Path, checkpoints: Checkpoints, result: Verification) -> None:
    """The metrics of an unfinished run, up to where its newest whole checkpoint saw them."""
    metrics = run / "metrics.jsonl"
    whole = [p for p in checkpoints.paths() if p / "state.json" in set(result.checked) - set(result.damaged)]
    if metrics in result.checked or not whole:
        return
    progress = read_json_object(whole[-1] / "state.json", infinite=True).get("progress")
    mark = progress.get("metrics") if isinstance(progress, dict) else None
    if mark is not None and not (isinstance(mark, dict) and isinstance(mark.get("bytes"), int)):
        result.damaged.append(whole[-1] / "state.json")
        return
    if mark:
        result.checked.append(metrics)
        content = metrics.read_bytes()[: mark["bytes"]] if metrics.exists() else b""
        if hashlib.sha256(content).hexdigest() != mark.get("sha256"):
            result.damaged.append(metrics)
