"""What `evaluate` found of a run, kept in the run: one sealed folder for each time."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.rundir.folder import RunFolder
from tunesmith.rundir.result import JudgementSummary
from tunesmith.rundir.schema import Count, Short, Strict, as_json
from tunesmith.rundir.seal import EVALUATIONS_NAME, write_sealed_folder


class Evaluation(Strict):
    """evaluation.json. when: local time. engine, device, dtype, quantization: what it was measured with.

    modules: how many of the base's modules the adapter applies to.
    """

    when: Short
    engine: Short
    device: Short
    dtype: Short
    quantization: Short
    modules: Count
    judgement: JudgementSummary


def keep_evaluation(run: Path, evaluation: Evaluation, recipe_text: str,
                    samples: Sequence[dict[str, Any]]) -> Path:
    """Write one into a run folder, beside the recipe that it was measured by; returns its folder.

    Raises DiskError, or EnvironmentFault while another process writes the run.
    """
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    files = {"evaluation.json": as_json(evaluation), "recipe.yaml": recipe_text, "samples.jsonl": lines}
    with RunFolder(run) as folder:
        name = time.strftime("%Y%m%d-%H%M%S")
        places = (folder.path / EVALUATIONS_NAME / (name if n == 1 else f"{name}-{n}")
                  for n in range(1, 10**6))
        place = next(each for each in places if not each.exists())
        write_sealed_folder(place, {name: text.encode() for name, text in files.items()})
    return place

