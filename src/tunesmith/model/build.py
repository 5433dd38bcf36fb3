"""Engines, built from plain settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import EnvironmentFault, IntegrityError
from tunesmith.model.device import choose_device, choose_dtype, why_spread
from tunesmith.model.engine import Engine
from tunesmith.model.files import BaseFiles
from tunesmith.model.lora import LoraSettings, copy_state, read_adapter


def build_for_training(base: BaseFiles, tokenizer: Any, *, engine: str, quantization: str, dtype: str, device: str,
                       lora: LoraSettings, seed: int, matmul: str = "exact") -> Engine:
    """The base with a fresh adapter.

    engine: hf or native, as `engines.settle_engine` decided.
    matmul: exact, fp8 or int8: how the native engine multiplies with frozen weights while training.
    Raises RecipeError, EnvironmentFault or OutOfMemory.
    """
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    _require_eight_bit(matmul, where)
    if engine == "native":
        from tunesmith.model.native.adapter import attach as attach_native
        from tunesmith.model.native.engine import NativeEngine, load_decoder

        decoder = load_decoder(base, quantization=quantization, dtype=kind, device=torch.device(where))
        settings = attach_native(decoder, lora, base.architecture, seed)
        return NativeEngine(decoder, settings, tokenizer, base, quantization=quantization, matmul=matmul)
    from tunesmith.model.hf.adapter import attach
    from tunesmith.model.hf.engine import HfEngine
    from tunesmith.model.hf.load import load_frozen

    model = load_frozen(base, quantization=quantization, dtype=kind, device=where, device_map_auto=device == "auto")
    tuned, notes = attach(model, lora, base.architecture, seed)
    return HfEngine(tuned, tokenizer, base, quantization=quantization, dtype=kind, notes=notes)


def build_with_adapter(base: BaseFiles, tokenizer: Any, adapter: Path, *, engine: str, quantization: str, dtype: str,
                       device: str) -> Engine:
    """The base with a saved adapter. engine: native only where it is known to take base and adapter, else hf; its `notes`
    say why.

    Raises IntegrityError when the adapter does not fit, and as above.
    """
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    config, state = read_adapter(adapter)
    reason = None
    if engine == "native":
        from tunesmith.model.native import adapter as native_adapter

        reason = native_adapter.why_not(config) or why_spread(base, quantization, device)
        if reason is None:
            from tunesmith.model.native.engine import NativeEngine, load_decoder

            decoder = load_decoder(base, quantization=quantization, dtype=kind, device=torch.device(where))
            settings = native_adapter.settings_of(config)
            native_adapter.attach_as(decoder, settings)
            copy_state(state, native_adapter.state(decoder), str(adapter))
            return _attached(NativeEngine(decoder, settings, tokenizer, base, quantization=quantization), adapter)
    from tunesmith.model.hf.adapter import load_adapter
    from tunesmith.model.hf.engine import HfEngine
    from tunesmith.model.hf.load import load_frozen

    model = load_frozen(base, quantization=quantization, dtype=kind, device=where, device_map_auto=device == "auto")
    found = HfEngine(load_adapter(model, adapter), tokenizer, base, quantization=quantization, dtype=kind)
    found.notes = _instead(reason)
    found.training(False)
    return _attached(found, adapter)


def build_bare(base: BaseFiles, tokenizer: Any, *, engine: str, quantization: str, dtype: str, device: str) -> Engine:
    """The base alone, to be asked and not trained, on whichever modules an adapter could sit or not.

    Raises RecipeError, EnvironmentFault or OutOfMemory.
    """
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    reason = why_spread(base, quantization, device) if engine == "native" else None
    if engine == "native" and reason is None:
        from tunesmith.model.native.engine import NativeEngine, load_decoder

        decoder = load_decoder(base, quantization=quantization, dtype=kind, device=torch.device(where))
        return NativeEngine(decoder, LoraSettings(1, 1, 0.0, []), tokenizer, base, quantization=quantization)
    from tunesmith.model.hf.adapter import attach_nothing
    from tunesmith.model.hf.engine import HfEngine
    from tunesmith.model.hf.load import load_frozen

    model = load_frozen(base, quantization=quantization, dtype=kind, device=where, device_map_auto=device == "auto")
    found = HfEngine(attach_nothing(model), tokenizer, base, quantization=quantization, dtype=kind)
    found.notes = _instead(reason)
    found.training(False)
    return found


def _instead(reason: str | None) -> tuple[str, ...]:
    """What is to be said where the hf engine runs what the native one was to."""
    return (f"This runs on the hf engine instead of the native one: {reason}.",) if reason else ()


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
    trained = any(bool(parameter.any()) for name, parameter in engine.trainable().items() if "lora_A" not in name)
    if trained and torch.equal(tuned, bare):
        raise IntegrityError(f"{adapter}: loaded, but the base's logits are the same with and without it",
                             "Is it an adapter for another base?")
    return engine


def _require_eight_bit(matmul: str, device: str) -> None:
    """Raise EnvironmentFault where 8-bit products are asked for and the device has none."""
    if matmul == "exact":
        return
    if not device.startswith("cuda"):
        raise EnvironmentFault(f"train.matmul: {matmul} needs a GPU that multiplies in it", "Set train.matmul to exact.")
    needed, capability = (8, 9) if matmul == "fp8" else (8, 0), torch.cuda.get_device_capability(device)
    if capability < needed:
        raise EnvironmentFault(f"train.matmul: {matmul} needs compute capability {needed[0]}.{needed[1]} or newer; "
                               f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}",
                               "Set train.matmul to exact.")
