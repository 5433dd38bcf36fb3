"""`tunesmith verify`: re-hash a run or an adapter and say what is damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tunesmith.rundir import verify_path


def verify(target: str | os.PathLike[str]) -> dict[str, Any]:
    """Re-hash everything in a run, a checkpoint or an adapter folder.

    Returns whole (bool), checked (how many files), damaged (paths) and unsealed (paths of files that nothing vouches
    for: metrics of a run that is still going, or files that others put there).
    Raises IntegrityError when nothing in the folder was ever sealed.
    """
    found = verify_path(Path(target))
    return {"target": os.fspath(target), "whole": not found.damaged, "checked": len(found.checked),
            "damaged": [str(path) for path in found.damaged], "unsealed": [str(path) for path in found.unsealed]}
