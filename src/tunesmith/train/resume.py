"""A checkpoint as bytes and back: adapter, optimiser, loss scaler, every random generator, the place in the data.

JSON and safetensors only. What is restored is exact, so on a CPU the resumed run ends bit-identical.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch

from tunesmith.errors import IntegrityError
from tunesmith.model.engine import Engine
from tunesmith.train.optim import AdamW


@dataclass
class Progress:
    """How far a run is. step: optimiser steps done; samples, tokens, loss_tokens: seen so far; seconds: of training."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    seconds: float = 0.0
    cut: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] | None = None


def checkpoint_files(engine: Engine, optimizer: AdamW, scaler: torch.amp.GradScaler,
                     progress: Progress) -> dict[str, bytes]:
    """Everything that a run is made of, as the files of a checkpoint."""
    moments = {}
    for name, parameter in engine.trainable().items():
        for key, value in optimizer.state[parameter].items():
            moments[f"{name}|{key}"] = value.detach().to("cpu", copy=True).contiguous()
    tensors, words = _random_state()
    state = {"progress": asdict(progress), "scaler": scaler.state_dict(), "random": words}
    return {**engine.adapter_files(), "optimizer.safetensors": safetensors.torch.save(moments),
            "random.safetensors": safetensors.torch.save(tensors),
            "state.json": (json.dumps(state, indent=1) + "\n").encode()}


def restore(files: dict[str, bytes], engine: Engine, optimizer: AdamW,
            scaler: torch.amp.GradScaler) -> Progress:
    """Put a checkpoint's content back. Raises IntegrityError when it belongs to another model."""
    state = json.loads(files["state.json"])
    engine.load_adapter_weights(safetensors.torch.load(files["adapter_model.safetensors"]))
    moments = safetensors.torch.load(files["optimizer.safetensors"])
    for name, parameter in engine.trainable().items():
        found = {key.rpartition("|")[2]: value for key, value in moments.items() if key.rpartition("|")[0] == name}
        if not found:  # it never had a gradient
            continue
        if set(found) != {"step", "exp_avg", "exp_avg_sq"} or found["exp_avg"].shape != parameter.shape:
            raise IntegrityError(f"optimizer.safetensors: does not fit {name}", "Start afresh in another --run folder.")
        # The step count stays where fused AdamW keeps it; the moments go to their parameter.
        optimizer.state[parameter] = {"step": found["step"].to(parameter.device),
                                      "exp_avg": found["exp_avg"].to(parameter.device),
                                      "exp_avg_sq": found["exp_avg_sq"].to(parameter.device)}
    if scaler.is_enabled():
        scaler.load_state_dict(state["scaler"])
    _set_random_state(safetensors.torch.load(files["random.safetensors"]), state["random"])
    return Progress(**state["progress"])


def seed_everything(seed: int) -> None:
    """Seed every generator that a step may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _random_state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
               "python": torch.tensor(words, dtype=torch.int64)}
    if torch.cuda.is_available():
        tensors |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, {"numpy": [kind, position, has_gauss, cached], "python": [version, gauss]}


def _set_random_state(tensors: dict[str, torch.Tensor], words: dict[str, Any]) -> None:
    kind, position, has_gauss, cached = words["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    version, gauss = words["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    torch.set_rng_state(tensors["torch"])
    for name, state in tensors.items():
        if name.startswith("cuda:") and int(name[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name[5:]))
