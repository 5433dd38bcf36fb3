"""manifest.json: what a run starts from. It says which format the run folder has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tunesmith.errors import IntegrityError
from tunesmith.rundir.ordinary import MOST_JSON_BYTES, parse_json, read_ordinary
from tunesmith.rundir.schema import Count, Sha256, Short, Strict, parse_as

#: The format of run folders that this program reads and writes. Whatever changes a file of a run so that an
#: older or a newer program would misread or refuse it, such as one more key of a schema, raises this number.
RUN_FORMAT = 4
MANIFEST_NAME = "manifest.json"
_ANOTHER = "Start another run with --run."


class BaseFacts(Strict):
    """The frozen base. name: a Hub id, or a folder outside of the run. files: a hash of each that counts."""

    name: Short
    revision: Short | None
    files: dict[Short, Short]

    @property
    def sampled(self) -> bool:
        """Whether some of the files were too large to be hashed whole."""
        return any(digest.startswith("sha256-of-samples") for digest in self.files.values())


class RowCounts(Strict):
    """How many rows there are, and how many were changed or left out; tokens: of the training set."""

    train: Count
    validation: Count
    truncated: Count
    dropped: Count
    repeated: Count
    tokens: Count


class DataFacts(Strict):
    """The rows. content, template: hashes of the rows as text and of templates.

    source: as in the recipe. files, validation_files: the files that rows were read from, the latter where
    the validation set has its own; by names that hold on any machine, the first thousand.
    """

    source: Short
    files: list[Short]
    validation_files: list[Short]
    content: Sha256
    counts: RowCounts
    template: Sha256


class Manifest(Strict):
    """The whole file. A key more, or one less, is another format: see RUN_FORMAT.

    run_id: tells this run from every other. started: local time. What was decided before anything was loaded:
    quantization, engine and why this one, device, dtype, matmul (how the native engine multiplies with frozen
    weights), spread (whether the base goes on all GPUs), activation_budget_bytes (memory for a step's
    activations), trainable_parameters, all_parameters. threads: of torch, on the CPU.
    """

    format: Annotated[int, Field(ge=RUN_FORMAT, le=RUN_FORMAT)]
    run_id: Short
    started: Short
    seed: int
    quantization: Short
    base: BaseFacts
    data: DataFacts
    engine: Short
    engine_reason: Short
    device: Short
    dtype: Short
    matmul: Short
    spread: bool
    activation_budget_bytes: Annotated[float, Field(ge=0)]
    trainable_parameters: Count
    all_parameters: Count
    threads: Count
    machine: Short
    versions: dict[Short, Short]


def read_manifest(run: Path) -> Manifest:
    """A run's manifest. Raises IntegrityError for another format, and what this program did not write so."""
    path = run / MANIFEST_NAME
    try:
        content = read_ordinary(path, MOST_JSON_BYTES)
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing", "Is this a run folder?") from None
    _require_format(parse_json(content, str(path), infinite=True), run)
    return parse_as(Manifest, content, str(path), _ANOTHER)


def require_format(run: Path) -> None:
    """Raise IntegrityError for a run folder of another format, by its name; without a manifest it passes."""
    path = run / MANIFEST_NAME
    if os.path.lexists(path):
        _require_format(parse_json(read_ordinary(path, MOST_JSON_BYTES), str(path), infinite=True), run)


def of_this_format(run: Path) -> bool:
    """Whether a folder has a manifest of this format."""
    try:
        require_format(run)
    except (IntegrityError, FileNotFoundError):
        return False
    return (run / MANIFEST_NAME).exists()


def _require_format(manifest: Any, run: Path) -> None:
    if not isinstance(manifest, Mapping):
        raise IntegrityError(f"{run / MANIFEST_NAME}: damaged: not a JSON object", _ANOTHER)
    number = manifest.get("format")
    if number == RUN_FORMAT and type(number) is int:
        return
    shown = number if type(number) is int and abs(number) < 10**9 else repr(number)[:40]
    name = ("a run folder without a format number" if "format" not in manifest
            else f"a run folder of format {shown}")
    versions = manifest.get("versions")
    version = versions.get("tunesmith") if isinstance(versions, Mapping) else None
    by = f" ({version[:40]})" if isinstance(version, str) else ""
    raise IntegrityError(
        f"{run}: {name}; this version of tunesmith reads and writes format {RUN_FORMAT}",
        f"Use the version of tunesmith that wrote it{by}, or train again into another folder with --run. Its "
        f"adapter works by itself: {run / 'adapter'}")
