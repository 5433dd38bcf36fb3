"""What is said of a run before its first step: whether the machine is busy, and what will be trained."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tunesmith.model.quantization import AS_THEY_ARE, WAYS
from tunesmith.recipe import Recipe
from tunesmith.verbs.prepare import Prepared
from tunesmith.verbs.show import RunFacts, Show

if TYPE_CHECKING:
    from tunesmith.model.engine import Engine


def tell_busy(device: str, show: Show) -> None:
    """Say where other processes take a CPU run's cores: its threads then wait for each other."""
    import torch

    if device.startswith("cuda") or not hasattr(os, "getloadavg"):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    if load > max(0.75 * cores, 1.0) and torch.get_num_threads() > 1:
        show.note(f"This machine is busy (load {load:.1f} on {cores} cores): "
                  "steps may take several times as long. Fewer threads lose less: --threads 1")


def tell_facts(recipe: Recipe, prepared: Prepared, engine: Engine, steps: int, show: Show) -> None:
    """What is about to be trained, and what of it the user may not expect."""
    import torch

    from tunesmith.model.base_config import DEQUANTIZED, own_quantization

    placement, kept, counts = prepared.decisions.placement, engine.values_by_format(), prepared.data.counts
    trainable, everything = engine.parameter_counts()
    on_gpu = engine.device.type == "cuda"
    show.facts(RunFacts(
        base=recipe.model.base, base_parameters=everything - trainable, quantization=placement.quantization,
        kept=kept, train_rows=counts["train"], validation_rows=counts["validation"], rank=recipe.lora.r,
        targets=tuple(sorted({name.split(".lora_")[0].rpartition(".")[2] for name in engine.trainable()})),
        trainable_parameters=trainable, engine=placement.engine, dtype=placement.dtype_name,
        matmul=placement.matmul, gpu=torch.cuda.get_device_name(engine.device) if on_gpu else None,
        threads=torch.get_num_threads(), steps=steps, batch_size=recipe.train.batch_size))
    for note in engine.notes:
        show.note(note)
    base_quantization = own_quantization(prepared.base.config)
    if base_quantization in DEQUANTIZED:
        show.note(f"The checkpoint is kept in {base_quantization}; "
                  f"its weights were turned back to {placement.dtype_name}.")
    if WAYS[placement.quantization].quantised and not kept.get(placement.quantization):
        show.note(f"Nothing of this base is kept in {placement.quantization}: "
                  "its layers are of kinds that bitsandbytes does not replace. "
                  f"It takes up as much memory as with model.quantization: {AS_THEY_ARE}.")
    if recipe.train.warmup_steps >= steps:
        show.note(f"train.warmup_steps is {recipe.train.warmup_steps}, the run has {steps}: "
                  "the learning rate never reaches its peak.")
