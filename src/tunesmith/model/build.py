"""Engines, built from plain settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.model.files import BaseFiles
from tunesmith.model.hf.adapter import attach, load_adapter
from tunesmith.model.hf.engine import HfEngine
from tunesmith.model.hf.load import choose_device, choose_dtype, load_frozen
from tunesmith.model.lora import LoraSettings


def build_for_training(base: BaseFiles, tokenizer: Any, *, quantization: str, dtype: str, device: str,
                       lora: LoraSettings, seed: int) -> HfEngine:
    """The base with a fresh adapter. Raises RecipeError, EnvironmentFault or OutOfMemory."""
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    model = load_frozen(base, quantization=quantization, dtype=kind, device=where, device_map_auto=device == "auto")
    return HfEngine(attach(model, lora, base.architecture, seed), tokenizer, base, quantization=quantization, dtype=kind)


def build_with_adapter(base: BaseFiles, tokenizer: Any, adapter: Path, *, quantization: str, dtype: str,
                       device: str) -> HfEngine:
    """The base with a saved adapter. Raises IntegrityError when the adapter does not fit, and as above."""
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    model = load_frozen(base, quantization=quantization, dtype=kind, device=where, device_map_auto=device == "auto")
    engine = HfEngine(load_adapter(model, adapter), tokenizer, base, quantization=quantization, dtype=kind)
    engine.training(False)
    return engine
