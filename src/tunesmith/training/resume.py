"""A checkpoint as bytes and back: adapter, optimiser, loss scaler, random generators, place in the data.

JSON and safetensors only. What is restored is exact, so on a CPU the resumed run ends bit-identical.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from tunesmith.errors import IntegrityError
from tunesmith.model.engine import Engine
from tunesmith.training.optim import AdamW
from tunesmith.training.state import MicroBatchPlanState, RandomState, read_state


@dataclass
class Progress:
    """How far a run is. step: optimiser steps done; samples, tokens, loss_tokens, seconds: so far."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    seconds: float = 0.0
    micro_batches: MicroBatchPlanState | None = None
    metrics: dict[str, Any] | None = None


def checkpoint_files(engine: Engine, optimizer: AdamW, scaler: torch.amp.GradScaler, progress: Progress,
                     run_id: str | None = None) -> dict[str, bytes]:
    """Everything that a run is made of, as the files of a checkpoint. run_id: of that run."""
    moments = {}
    for name, parameter in engine.trainable().items():
        for key, value in optimizer.state[parameter].items():
            moments[f"{name}|{key}"] = value.detach().to("cpu", copy=True).contiguous()
    tensors, generator_fields = _random_state()
    reached = asdict(progress) | {"micro_batches": progress.micro_batches.model_dump()
                                  if progress.micro_batches else {}}
    state = {"progress": reached, "scaler": scaler.state_dict(), "random": generator_fields, "run_id": run_id}
    return {**engine.adapter_files(), "optimizer.safetensors": safetensors.torch.save(moments),
            "random.safetensors": safetensors.torch.save(tensors),
            "state.json": (json.dumps(state, indent=1) + "\n").encode()}


def restore(files: dict[str, bytes], engine: Engine, optimizer: AdamW, scaler: torch.amp.GradScaler,
            run_id: str | None = None) -> Progress:
    """Put a checkpoint's content back.

    Raises IntegrityError when it belongs to another run or another model, or was not written by this program.
    """
    state = read_state(_file(files, "state.json"))
    if state.run_id != run_id:
        raise IntegrityError("state.json: a checkpoint of another run",
                             "Remove it from this run's checkpoints.")
    try:
        engine.load_adapter_weights(safetensors.torch.load(_file(files, "adapter_model.safetensors")))
        _set_moments(safetensors.torch.load(_file(files, "optimizer.safetensors")), engine, optimizer)
        if scaler.is_enabled():
            scaler.load_state_dict(state.scaler.model_dump(by_alias=True))
        _set_random_state(safetensors.torch.load(_file(files, "random.safetensors")), state.random)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise IntegrityError(f"the checkpoint was not written by this program: {error}",
                             "Start afresh in another --run folder.") from None
    saved = state.progress
    return Progress(saved.step, saved.samples, saved.tokens, saved.loss_tokens, saved.seconds,
                    saved.micro_batches if isinstance(saved.micro_batches, MicroBatchPlanState) else None,
                    saved.metrics.model_dump() if saved.metrics else None)


def _file(files: dict[str, bytes], name: str) -> bytes:
    if name not in files:
        raise IntegrityError(f"{name}: missing in the checkpoint", "Start afresh in another --run folder.")
    return files[name]


def _set_moments(moments: dict[str, torch.Tensor], engine: Engine, optimizer: AdamW) -> None:
    """Raises IntegrityError where they are another model's, or not finite."""
    for name, parameter in engine.trainable().items():
        own = {key.rpartition("|")[2]: value for key, value in moments.items()
               if key.rpartition("|")[0] == name}
        if not own:  # it never had a gradient
            continue
        if not _moments_fit(own, parameter):
            raise IntegrityError(f"optimizer.safetensors: does not fit {name}",
                                 "Start afresh in another --run folder.")
        # The step count stays where fused AdamW keeps it; the moments go to their parameter.
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in own.items()}


def _moments_fit(moments: dict[str, torch.Tensor], parameter: torch.Tensor) -> bool:
    """Whether they are what AdamW keeps for this parameter, and finite."""
    def fits(moment: torch.Tensor) -> bool:
        return (moment.shape == parameter.shape and moment.dtype == parameter.dtype
                and bool(torch.isfinite(moment).all()))

    return (set(moments) == {"step", "exp_avg", "exp_avg_sq"} and moments["step"].numel() == 1
            and all(fits(moments[key]) for key in ("exp_avg", "exp_avg_sq"))
            and bool((moments["exp_avg_sq"] >= 0).all()) and moments["step"].item() >= 1)


def seed_everything(seed: int) -> None:
    """Seed every generator that a step may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _random_state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, python_state, gauss = random.getstate()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
               "python": torch.tensor(python_state, dtype=torch.int64)}
    if torch.cuda.is_available():
        tensors |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, {"numpy": [kind, position, has_gauss, cached], "python": [version, gauss]}


def _set_random_state(tensors: dict[str, torch.Tensor], generator_fields: RandomState) -> None:
    kind, position, has_gauss, cached = generator_fields.numpy
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    version, gauss = generator_fields.python
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    torch.set_rng_state(tensors["torch"])
    for name, state in tensors.items():
        if name.startswith("cuda:") and int(name[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name[5:]))
