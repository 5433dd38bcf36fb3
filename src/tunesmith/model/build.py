"""Engines, built as a `Placement` says; nothing is decided here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import IntegrityError
from tunesmith.model.engine import Engine
from tunesmith.model.files import BaseFiles
from tunesmith.model.lora import LoraSettings, copy_state, read_adapter
from tunesmith.model.placement import Placement


def build_for_training(base: BaseFiles, tokenizer: Any, placement: Placement, *, lora: LoraSettings,
                       seed: int) -> Engine:
    """The base with a fresh adapter. Raises RecipeError, IntegrityError, EnvironmentFault or OutOfMemory."""
    if placement.engine == "native":
        from tunesmith.model.native.adapter import attach as attach_native

        decoder = _decoder(base, placement)
        return _native(decoder, attach_native(decoder, lora, base.architecture, seed), base, tokenizer,
                       placement)
    from tunesmith.model.hf.adapter import attach
    from tunesmith.model.hf.load import load_frozen

    tuned, notes = attach(load_frozen(base, placement), lora, base.architecture, seed)
    return _hf(tuned, base, tokenizer, placement, notes)


def build_with_adapter(base: BaseFiles, tokenizer: Any, adapter: Path, placement: Placement) -> Engine:
    """The base with a saved adapter, for inference. Its `notes` say where it is not the intended engine.

    Raises IntegrityError when the adapter does not fit, and as above.
    """
    config, state = read_adapter(adapter)
    if placement.engine == "native":
        from tunesmith.model.native import adapter as native_adapter

        if reason := native_adapter.why_not(config, base.config):
            raise ValueError(f"the placement says native, and {reason}")  # it was made without this adapter
        decoder = _decoder(base, placement)
        settings = native_adapter.settings_of(config)
        native_adapter.attach_as(decoder, settings)
        copy_state(state, native_adapter.state(decoder), str(adapter))
        return _attached(_native(decoder, settings, base, tokenizer, placement), adapter)
    from tunesmith.model.hf.adapter import load_adapter
    from tunesmith.model.hf.load import load_frozen

    engine = _hf(load_adapter(load_frozen(base, placement), adapter), base, tokenizer, placement)
    engine.training(False)
    return _attached(engine, adapter)


def build_without_adapter(base: BaseFiles, tokenizer: Any, placement: Placement) -> Engine:
    """The base alone, to be asked and not trained, on whichever modules an adapter could sit or not.

    Raises RecipeError, IntegrityError, EnvironmentFault or OutOfMemory.
    """
    if placement.engine == "native":
        return _native(_decoder(base, placement), None, base, tokenizer, placement)
    from tunesmith.model.hf.load import load_frozen

    engine = _hf(load_frozen(base, placement), base, tokenizer, placement)
    engine.training(False)
    return engine


def _decoder(base: BaseFiles, placement: Placement) -> Any:
    from tunesmith.model.native.engine import load_decoder

    return load_decoder(base, quantization=placement.quantization, dtype=placement.dtype,
                        device=torch.device(placement.device))


def _native(decoder: Any, settings: LoraSettings | None, base: BaseFiles, tokenizer: Any,
            placement: Placement) -> Engine:
    from tunesmith.model.native.engine import NativeEngine

    return NativeEngine(decoder, settings, tokenizer, base, quantization=placement.quantization,
                        matmul=placement.matmul)


def _hf(model: Any, base: BaseFiles, tokenizer: Any, placement: Placement,
        notes: Sequence[str] = ()) -> Engine:
    """An hf engine; its notes say where it runs what the native one was to."""
    from tunesmith.model.hf.engine import HfEngine

    reason = placement.fallback_reason
    said = (f"This runs on the hf engine instead of the native one: {reason}.",) if reason else ()
    return HfEngine(model, tokenizer, base, quantization=placement.quantization, dtype=placement.dtype,
                    notes=(*said, *notes))


def count_modules(engine: Engine) -> int:
    """How many of the base's modules the adapter sits on."""
    return sum(".lora_A." in name or ".lora_embedding_A" in name for name in engine.trainable())


def _attached(engine: Engine, adapter: Path) -> Engine:
    """The engine, once it is seen that the adapter is on it: its logits are not the bare base's.

    Raises IntegrityError where tensors that are not zero change nothing.
    """
    probe = [[token % int(engine.base.config.get("vocab_size", 2)) for token in range(1, 9)]]
    with torch.no_grad():
        tuned = engine.logits(probe)[0]
        with engine.adapter_disabled():
            bare = engine.logits(probe)[0]
    trained = any(bool(parameter.any()) for name, parameter in engine.trainable().items()
                  if "lora_A" not in name)
    if trained and torch.equal(tuned, bare):
        raise IntegrityError(f"{adapter}: loaded, but the base's logits are the same with and without it",
                             "Is it an adapter for another base?")
    return engine
