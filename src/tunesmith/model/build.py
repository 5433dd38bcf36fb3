"""Engines, built from plain settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tunesmith.model.engine import Engine
from tunesmith.model.files import BaseFiles
from tunesmith.model.hf.load import choose_device, choose_dtype
from tunesmith.model.lora import LoraSettings, copy_state, read_adapter


def build_for_training(base: BaseFiles, tokenizer: Any, *, engine: str, quantization: str, dtype: str, device: str,
                       lora: LoraSettings, seed: int) -> Engine:
    """The base with a fresh adapter. engine: hf or native. Raises RecipeError, EnvironmentFault or OutOfMemory."""
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    if engine == "native":
        from tunesmith.model.native.adapter import attach as attach_native
        from tunesmith.model.native.engine import NativeEngine, load_decoder

        decoder = load_decoder(base, quantization=quantization, dtype=kind, device=torch.device(where))
        config = attach_native(decoder, lora, base.architecture, seed)
        return NativeEngine(decoder, config, tokenizer, base, quantization=quantization)
    from tunesmith.model.hf.adapter import attach
    from tunesmith.model.hf.engine import HfEngine
    from tunesmith.model.hf.load import load_frozen

    model = load_frozen(base, quantization=quantization, dtype=kind, device=where, device_map_auto=device == "auto")
    return HfEngine(attach(model, lora, base.architecture, seed), tokenizer, base, quantization=quantization, dtype=kind)


def build_with_adapter(base: BaseFiles, tokenizer: Any, adapter: Path, *, engine: str, quantization: str, dtype: str,
                       device: str) -> Engine:
    """The base with a saved adapter. engine: native only where it is known to take base and adapter, else hf.

    Raises IntegrityError when the adapter does not fit, and as above.
    """
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    config, state = read_adapter(adapter)
    if engine == "native":
        from tunesmith.model.native.adapter import attach_as, why_not
        from tunesmith.model.native.adapter import state as places

        if why_not(config) is None:
            from tunesmith.model.native.engine import NativeEngine, load_decoder

            decoder = load_decoder(base, quantization=quantization, dtype=kind, device=torch.device(where))
            attach_as(decoder, config)
            copy_state(state, places(decoder), str(adapter))
            return NativeEngine(decoder, config, tokenizer, base, quantization=quantization)
    from tunesmith.model.hf.adapter import load_adapter
    from tunesmith.model.hf.engine import HfEngine
    from tunesmith.model.hf.load import load_frozen

    model = load_frozen(base, quantization=quantization, dtype=kind, device=where, device_map_auto=device == "auto")
    found = HfEngine(load_adapter(model, adapter), tokenizer, base, quantization=quantization, dtype=kind)
    found.training(False)
    return found
