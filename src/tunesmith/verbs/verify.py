"""`tunesmith verify`: re-hash a run or an adapter and say what is damaged."""

from __future__ import annotations

import os
from typing import Any

from tunesmith.hub import is_hub_id
from tunesmith.paths import expanded
from tunesmith.rundir import verify_path
from tunesmith.rundir.seal import STATUS_NAME
from tunesmith.rundir.status import read_status
from tunesmith.verbs.show import Show, Silent


def verify(target: str | os.PathLike[str], *, show: Show | None = None) -> dict[str, Any]:
    """Re-hash everything in a run, a checkpoint or an adapter, in a folder or by its Hub id.

    Returns whole (bool), checked (how many files), damaged (paths) and unsealed (paths of files that nothing
    vouches for: metrics of a run that is still going, or files that others put there), run (whether it is a
    run, or part of one), state (of a run folder: running, stopped, failed or finished; else None), reason
    (why it was stopped or failed). Raises UsageError when there is no such folder, IntegrityError when
    nothing in it was ever sealed, NetworkError.
    """
    if is_hub_id(os.fspath(target)):
        from tunesmith.verbs.adapters import download_adapter

        # which checks the Hub's hashes, and the adapter's own
        folder = download_adapter(os.fspath(target), show or Silent())
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {"target": os.fspath(target), "whole": True, "checked": len(files), "damaged": [],
                "unsealed": [], "run": False, "state": None, "reason": ""}
    path = expanded(target)
    result = verify_path(path)
    readable = (path / "manifest.json").exists() and path / STATUS_NAME not in result.damaged
    status = read_status(path) if readable else None
    return {"target": os.fspath(target), "whole": not result.damaged, "checked": len(result.checked),
            "damaged": [str(file) for file in result.damaged],
            "unsealed": [str(file) for file in result.unsealed],
            "run": (path / "recipe.yaml").exists() or path.parent.name == "checkpoints",
            "state": status.state if status else None, "reason": status.reason if status else ""}
