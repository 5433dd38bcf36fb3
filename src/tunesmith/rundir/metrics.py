"""metrics.jsonl: one JSON object a step, appended as the run goes; checkpoints know how long the file was."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tunesmith.rundir.files import disk_errors

#: What each step's line has; the report draws it.
_EVERY_STEP = ("step", "loss", "learning_rate")


class MetricsLog:
    """The step log of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Add one step's line. Raises DiskError."""
        with disk_errors(self.path), open(self.path, "ab") as file:
            file.write((json.dumps(record) + "\n").encode())

    def mark(self) -> dict[str, Any]:
        """The file's length and hash so far, flushed to disk: what a checkpoint keeps. Raises DiskError."""
        with disk_errors(self.path):
            self.path.touch()
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())
                content = file.read()
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def rewind(self, mark: dict[str, Any] | None) -> bool:
        """Cut the file back to a mark (None: empty it). False when what is left is not what the mark knew."""
        with disk_errors(self.path):
            self.path.touch()
            with open(self.path, "rb+") as file:
                content = file.read()[: mark["bytes"] if mark else 0]
                content = content[: content.rfind(b"\n") + 1]  # a line that was torn does not come back
                file.truncate(len(content))
        return mark is None or hashlib.sha256(content).hexdigest() == mark["sha256"]

    def read(self) -> list[dict[str, Any]]:
        """Every whole line so far, as a step wrote it; a last line torn by a crash is passed over."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and all(_is_number(record.get(key)) for key in _EVERY_STEP):
                records.append(record)
        return records


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
