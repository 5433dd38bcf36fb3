"""`tunesmith demo`: the whole road on the embedded base and quotes, with no network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tunesmith.recipe import parse_recipe, preset_text
from tunesmith.verbs.show import Show
from tunesmith.verbs.train import train


def demo(*, run: str | os.PathLike[str] = "runs/demo", show: Show | None = None) -> dict[str, Any]:
    """Train the preset `demo` and show what changed.

    Returns what `train` returns, the report's path, and the samples. Raises as `train` does.
    """
    result = train(parse_recipe(preset_text("demo"), name="demo"), run=run, show=show)
    folder = Path(result["run"])
    samples = [json.loads(line)
               for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    return {**result, "report": str(folder / "report.html"), "samples": samples}
