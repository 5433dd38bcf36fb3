"""Files of a run folder as this program writes them, for tests that need one without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.rundir import RunFolder, write_atomically
from tunesmith.rundir.manifest import RUN_FORMAT, Manifest
from tunesmith.rundir.result import RunResult
from tunesmith.rundir.schema import as_json


def manifest(**changes: Any) -> Manifest:
    """A whole manifest; changes: of its keys."""
    counts = {"train": 20, "validation": 5, "truncated": 0, "dropped": 0, "repeated": 0, "tokens": 400}
    return Manifest.model_validate({
        "format": RUN_FORMAT, "run_id": "a", "started": "2026-01-01 00:00:00 +0000", "seed": 0,
        "quantization": "none",
        "base": {"name": "embedded:sprout", "revision": None, "files": {"model.safetensors": "sha256:00"}},
        "data": {"source": "embedded:quotes", "files": ["embedded/quotes.jsonl"], "validation_files": [],
                 "content": "0" * 64, "counts": counts, "template": "1" * 64},
        "engine": "native", "engine_reason": "it knows the base", "device": "cpu", "dtype": "float32",
        "matmul": "exact", "spread": False, "activation_budget_bytes": 2.0e9, "trainable_parameters": 10,
        "all_parameters": 100, "threads": 1, "machine": "a machine", "versions": {"tunesmith": "0.1.0"},
        **changes})


def result(**changes: Any) -> RunResult:
    """A whole result of a run that had no validation set; changes: of its keys."""
    return RunResult.model_validate({
        "engine": "native", "trainable_parameters": 1234, "all_parameters": 10**6, "steps": 6,
        "train_loss": 1.5,
        "eval_loss_before": None, "eval_loss_after": None, "seconds": 2.0, "tokens_per_second": 10.0,
        "kept": {"float32": 10**6}, "peak_memory_bytes": 1 << 30, "verdict": None, "judgement": None,
        "prompt": "...", **changes})


def begin(run: RunFolder, recipe: str = "r") -> None:
    """What a new run writes before its first step."""
    write_atomically(run.recipe, recipe)
    write_atomically(run.manifest, as_json(manifest()))
    run.begin()


def begun(path: Path) -> RunFolder:
    """A run that has begun and that no process writes."""
    with RunFolder(path) as run:
        begin(run)
    return run
