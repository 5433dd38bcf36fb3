"""The adapter's folder: PEFT's two files, the stop tokens, its metadata, and a card of what it does."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.model.engine import Engine
from tunesmith.rundir import CARD_NAME, write_sealed_folder
from tunesmith.rundir.result import RunResult
from tunesmith.share.card import Card, render_card
from tunesmith.share.metadata import METADATA_NAME, training_facts


@dataclass(frozen=True)
class Asked:
    """How prompts were written in training, see `AdapterMetadata`. prompt: the recipe's template."""

    prompt: str
    messages: bool
    template_kwargs: dict[str, Any]
    special_tokens: bool


def write_adapter_folder(folder: Path, engine: Engine, *, base_name: str, revision: str | None,
                         asked: Asked, result: RunResult, recipe: dict[str, Any],
                         base_weights: dict[str, str]) -> None:
    """Write the folder, whole or not at all, sealed. Raises DiskError.

    asked: how the model was asked in training. result: what came out of the run. recipe: its sections.
    base_weights: hashes of the base's files of weights, by which another base of the same shapes is told
    apart.
    """
    metadata = {"base": base_name, "revision": revision, "quantization": engine.quantization,
                "dtype": str(engine.dtype).removeprefix("torch."), **asdict(asked),
                "base_weights": base_weights, "trained": training_facts(recipe, result),
                "judgement": result.judgement.model_dump(mode="json") if result.judgement else None}
    generation = {"eos_token_id": engine.stop_ids, "pad_token_id": engine.pad_id, "do_sample": False}
    files = engine.adapter_files()
    files["generation_config.json"] = json_bytes(generation)
    files[METADATA_NAME] = json_bytes(metadata)
    files[CARD_NAME] = render_card(Card(metadata, files=frozenset(files))).encode()
    write_sealed_folder(folder, files)


def json_bytes(value: Any, *, sort_keys: bool = False) -> bytes:
    """As a file's content."""
    return (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=sort_keys) + "\n").encode()
